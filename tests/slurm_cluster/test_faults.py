"""What goes wrong on a cluster: daemons killed, nodes lost, answers lost, jobs preempted. One result, one job at a time."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from dpo_core.contract.errors import StepCrashed, TimedOut
from examples.slurm.private_cluster import PrivateCluster
from tasks.launch.cluster_job import ClusterJob
from tasks.launch.context import Context, OnClusterJob, Stopped
from tasks.launch.launcher import Ended
from tasks.launch.slurm.client import SlurmAway
from tasks.launch.slurm.poll import poll_of_this_process
from tests.slurm_cluster.conftest import SecondsOf
from tests.slurm_cluster.kills import run_many
from tests.slurm_cluster.scale import steps
from tests.slurm_cluster.small_step import SmallStep
from tests.slurm_cluster.test_launcher import wait_for
from tests.slurm_cluster.trial import FAULTS
from tests.waiting import PATIENCE_SECONDS

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("cold_steps")]
SECONDS_AWAY = 25.0
COUNTING = """
    Path("checkpoints").mkdir(exist_ok=True)
    def stop():
        print("stopped", flush=True)
        sys.exit(20)
    on_stop(stop)
    for number in range(len(list(Path("checkpoints").iterdir())), LAST):
        while number in HELD_AT and not Path(f"go-on-{number}").exists():
            time.sleep(0.05)
        print("number", number, os.environ["SLURMD_NODENAME"], flush=True)
        Path(f"checkpoints/step-{number:08d}").write_text(str(time.time()))
        time.sleep(0.2)
"""


def counting(last: int, *held_at: int) -> str:
    """A program that counts to a number, a checkpoint each; asked to stop, it keeps where it stands and ends as preempted.

    Before a number that it is ``held_at`` it waits for ``let_go``, so that what a test does meanwhile meets it at work."""
    return COUNTING.replace("LAST", str(last)).replace("HELD_AT", str(held_at))


def let_go(step: SmallStep, number: int) -> None:
    """It counts on from the number."""
    (step.folder / f"go-on-{number}").touch()


@contextmanager
def meanwhile(step: SmallStep, shown: OnClusterJob | None = None) -> Iterator[Callable[[], Ended]]:
    """Run the step in a thread. -> waits for its end; a test that fails before does not wait for it."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(step.run, Context(stop=stop, on_cluster_job=shown))
        try:
            yield lambda: running.result(timeout=PATIENCE_SECONDS)
        finally:
            stop.set()


def crash_or_end(end: Callable[[], Ended]) -> Ended | StepCrashed:
    """How it ended, raised or returned."""
    try:
        return end()
    except StepCrashed as crashed:
        return crashed


def numbers(step: SmallStep) -> list[int]:
    """What was counted, in order."""
    return [int(line.split()[1]) for line in step.log_lines if line.startswith("number ")]


def test_a_job_that_is_preempted_goes_on_and_so_does_one_whose_time_is_up(
    cluster: PrivateCluster, tmp_path, seconds_of: SecondsOf
):
    """The same job is requeued; or another one is submitted, within the same call: no retry is used."""
    step = SmallStep(tmp_path, counting(14, 5, 9))
    shown: list[ClusterJob] = []
    with meanwhile(step, shown.append) as end:
        wait_for(lambda: len(numbers(step)) >= 3 and any(job.state == "RUNNING" for job in shown))
        with seconds_of("preempted by a job of 1 s, until the next start"):
            urgent = ("-p", "urgent", "-N2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")
            cluster.ask("sbatch", *urgent)
            wait_for(lambda: "stopped" in step.log_lines)
            let_go(step, 5)
            wait_for(lambda: (cluster.start_now(), step.num_starts == 2)[1])
        wait_for(lambda: len(numbers(step)) >= 6)
        (job_id,) = cluster.ask("squeue", "-h", "-o", "%i").split()
        with seconds_of("asked to stop, until the next job's start"):
            cluster.ask("scancel", "--signal=TERM", job_id)  # as sbatch --signal does before the time limit
            wait_for(lambda: step.num_starts == 3)
        let_go(step, 9)
        assert end() == Ended(0)
    assert numbers(step) == list(range(14))
    assert (step.num_starts, step.prepared) == (3, 2)
    assert {"PENDING", "RUNNING"} <= {job.state for job in shown}
    ends = [start.end for start in shown[-1].starts]
    assert (shown[-1].state, len(ends), ends[-1]) == ("ENDED", 3, "done")
    assert all(ends)  # how, is as the busy machine let them
    went_on_from = [start.from_step for start in shown[-1].starts]
    assert went_on_from[0] is None
    assert 2 <= went_on_from[1] < went_on_from[2]


def test_a_job_that_keeps_nothing_before_its_time_is_up_is_not_begun_for_ever(
    cluster: PrivateCluster, tmp_path
):
    step = SmallStep(tmp_path, "sys.exit(20)")
    with pytest.raises(TimedOut, match="one checkpoint must fit into one job"):
        step.run()
    assert step.num_starts == 1


def test_an_answer_that_is_lost_and_a_controller_that_dies_leave_one_job(
    own_cluster: PrivateCluster, tmp_path, seconds_of: SecondsOf
):
    """sbatch gives up after MessageTimeout, and the job is submitted all the same."""
    step = SmallStep(tmp_path, counting(20, 10), settings={"cpus_per_node": 1})
    with meanwhile(step) as end:
        wait_for(lambda: step.prepared == 1)
        with seconds_of("slurmctld stopped for 4 s while a job is submitted, until it counts"):
            own_cluster.signal_controller(signal.SIGSTOP)
            time.sleep(4)
            own_cluster.signal_controller(signal.SIGCONT)
            wait_for(lambda: numbers(step))
        wait_for(lambda: len(numbers(step)) >= 3)
        own_cluster.save_jobs()
        own_cluster.kill_controller()
        time.sleep(1)
        own_cluster.start_controller()
        let_go(step, 10)
        assert end() == Ended(0)
    assert numbers(step) == list(range(20))
    assert (step.num_starts, step.prepared) == (1, 1)
    assert own_cluster.jobs() == []


@pytest.mark.parametrize("is_taken", [True, False], ids=["after it submitted", "before it submitted"])
def test_an_sbatch_that_is_killed_leaves_one_job(
    cluster: PrivateCluster, tmp_path, monkeypatch, is_taken: bool
):
    """Nobody knows whether it had submitted; whoever waits looks before another one is."""
    killed, programs = tmp_path / "killed", tmp_path / "bin"
    programs.mkdir()
    real = shutil.which("sbatch")
    (programs / "sbatch").write_text(
        f'#!/bin/sh\nmkdir "{killed}" 2>/dev/null || exec {real} "$@"\n'
        f'{f"""{real} "$@" >{tmp_path}/taken""" if is_taken else ":"}\nkill -9 $$\n'
    )
    (programs / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    # Slurm is idle, and answers of what it has got: nobody waits a minute for what it may get late.
    monkeypatch.setattr("tasks.launch.slurm.launcher.SECONDS_BEFORE_LOOKS", (0.0, 1.0))
    step = SmallStep(tmp_path, "print(os.environ['SLURM_JOB_ID'], flush=True)")
    assert step.run() == Ended(0)
    assert killed.is_dir()
    assert (step.num_starts, step.prepared) == (1, 1)
    if is_taken:
        assert step.log_lines == (tmp_path / "taken").read_text().splitlines()
    assert len(list(step.record.glob("*.0"))) == 1
    assert cluster.jobs() == []


def test_a_controller_that_is_back_within_patience_costs_nothing(
    own_cluster: PrivateCluster, tmp_path, seconds_of: SecondsOf
):
    """Away for longer than Slurm's own programs wait: nothing fails, nothing is begun again."""
    step, shown = SmallStep(tmp_path, counting(20, 10)), list[ClusterJob]()
    with meanwhile(step, shown.append) as end:
        wait_for(lambda: len(numbers(step)) >= 3)
        own_cluster.save_jobs()
        own_cluster.kill_controller()
        killed = time.monotonic()
        wait_for(lambda: shown[-1].state == "unknown: Slurm does not answer")
        wait_for(lambda: time.monotonic() - killed > SECONDS_AWAY)
        assert numbers(step)[-1] == 9  # it works on
        with seconds_of(f"slurmctld back after {SECONDS_AWAY:.0f} s, until the job is seen again"):
            own_cluster.start_controller()
            wait_for(lambda: shown[-1].state == "RUNNING")
        let_go(step, 10)
        assert end() == Ended(0)
    assert numbers(step) == list(range(20))
    assert (step.num_starts, step.prepared) == (1, 1)
    assert own_cluster.jobs() == []


def test_a_controller_that_stays_away_fails_the_run_and_the_next_one_attaches(
    own_cluster: PrivateCluster, tmp_path, seconds_of: SecondsOf
):
    """Longer than anybody waits: an error that is retried. The job runs on meanwhile."""
    step = SmallStep(tmp_path, counting(20, 10), patience_seconds=3)
    with meanwhile(step) as end:
        wait_for(lambda: len(numbers(step)) >= 3)
        own_cluster.save_jobs()
        own_cluster.kill_controller()
        with pytest.raises(SlurmAway) as away:
            end()
    assert (away.value.kind, away.value.retryable) == ("remote", True)
    own_cluster.start_controller()
    shown: list[ClusterJob] = []
    with meanwhile(step, shown.append) as end:
        with seconds_of("slurmctld given up, until the next run has its job"):
            wait_for(lambda: any(job.state == "RUNNING" for job in shown))
        let_go(step, 10)
        assert end() == Ended(0)
    assert numbers(step) == list(range(20))
    assert (step.num_starts, step.prepared) == (1, 1)
    assert own_cluster.jobs() == []


def test_what_a_lost_node_runs_is_ended_by_the_start_that_follows(
    own_cluster: PrivateCluster, tmp_path, seconds_of: SecondsOf
):
    """The node's daemon is killed and its trainer is not: Slurm starts the job on the other node beside it."""
    step = SmallStep(tmp_path, counting(10_000).replace("sys.exit(20)", "pass"))
    with meanwhile(step) as end:
        wait_for(lambda: len(numbers(step)) >= 3)
        with seconds_of("slurmd killed, until the start on another node"):
            own_cluster.kill_node("n1")
            wait_for(lambda: (own_cluster.start_now(), step.num_starts == 2)[1])
        ghost = (
            step.record / f"{Path(step.record / 'attempt').read_text().split('.')[0]}.0" / "ranks/rank-0.json"
        )
        assert '"code": 75' in ghost.read_text()  # it had ended before the other one began
        own_cluster.ask("scancel", *own_cluster.ask("squeue", "-h", "-o", "%i").split())
        with pytest.raises(Exception, match="cancelled by someone"):
            end()
    assert numbers(step) == sorted(set(numbers(step)))


@pytest.mark.timeout(1200)
def test_killed_at_random_moments_a_job_ends_with_one_result():
    """Some of the kills of ``tests/slurm_cluster/kills.py``, which by hand kills as often as one likes."""
    faults = [fault for fault in FAULTS if fault != "srun"]
    outcomes = run_many(faults, seed=18, seconds=600, side_by_side=2)
    assert len(outcomes) == len(faults)
    assert [outcome for outcome in outcomes if outcome.problems] == []


def test_many_jobs_in_a_queue_are_one_question_to_slurm(own_cluster: PrivateCluster, tmp_path):
    """``tests/slurm_cluster/scale.py`` does so with 200 jobs on 50 nodes. While they are young, one every two seconds."""
    own_cluster.ask("scontrol", "update", "nodename=n[1-2]", "state=drain", "reason=full")
    stop, poll = threading.Event(), poll_of_this_process()
    waiting = steps(tmp_path, 12, seconds=0.0)
    with ThreadPoolExecutor(len(waiting)) as pool:
        try:
            running = [pool.submit(step.run, Context(stop=stop)) for step in waiting]
            wait_for(lambda: len(own_cluster.jobs()) == len(waiting))
            wait_for(lambda: len(poll.names) == len(waiting))
            began, before = time.monotonic(), poll.num_asked
            wait_for(lambda: poll.num_asked >= before + 2)
            assert time.monotonic() - began > 1.5
        finally:
            stop.set()
        assert {type(one.exception(timeout=120)) for one in running} == {Stopped}
    assert {state for _, state in own_cluster.jobs()} == set()


def test_a_controller_that_lost_all_it_knew_gives_the_id_to_somebody_else(
    own_cluster: PrivateCluster, tmp_path, monkeypatch
):
    """Slurm kills what a node registers of a job that it does not know. The run ends with an error that is retried, once
    there is no sign of life any more; whoever has the id now is left alone."""
    monkeypatch.setattr("tasks.launch.slurm.watch.SECONDS_WITHOUT_A_SIGN", 10.0)
    step = SmallStep(tmp_path, counting(10_000))
    with meanwhile(step) as end:
        wait_for(lambda: len(numbers(step)) >= 3)
        (job_id,) = own_cluster.ask("squeue", "-h", "-o", "%i").split()
        own_cluster.lose_state()
        other = (
            "sbatch",
            "--parsable",
            "--job-name=other",
            "-w",
            "n2",
            "--output=/dev/null",
            "--wrap",
            "sleep 600",
        )
        assert own_cluster.ask(*other).strip() == job_id
        ended = crash_or_end(end)
        # or a rank had the time to say what it was killed by, which is a crash for whoever waits, too
        assert "is gone on n1" in str(ended) if isinstance(ended, StepCrashed) else ended.exit_code, ended
    assert numbers(step) == sorted(set(numbers(step)))
    assert [name for name, _ in own_cluster.jobs()] == ["other"]
