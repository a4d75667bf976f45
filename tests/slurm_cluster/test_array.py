"""A reference pass in shares, as an array of jobs: one result, whatever of it is lost on the way."""

import os
import signal
import threading
from pathlib import Path

import pytest

from dpo_core.contract.errors import Cancelled, TimedOut
from examples.slurm.private_cluster import PrivateCluster
from tasks.launch.cluster_job import ClusterJob
from tasks.launch.context import Context, Stopped
from tasks.launch.launcher import Ended
from tasks.launch.log_position import saved_times
from tasks.launch.slurm.reap import reap_jobs
from tests.slurm_cluster.small_step import SmallStep
from tests.slurm_cluster.test_faults import meanwhile
from tests.slurm_cluster.test_launcher import orchestrator, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("cold_steps")]
LAST = 6
# A share computes those of its numbers that are not there; the pass takes what is there, and computes what is not. Where it
# IS_HELD, a share waits for ``let_go`` with its last number, so that what a test does meanwhile meets shares at work.
COUNTING = f"""
    cache = Path("cache")
    cache.mkdir(exist_ok=True)
    share, count = map(int, sys.argv[-1].split("/")) if "--share" in sys.argv else (0, 1)
    for number in range(share, count * {LAST}, count) if count > 1 else range(4 * {LAST}):
        place = cache / f"{{number:03d}}"
        while IS_HELD and count > 1 and number >= {LAST - 1} * count and not Path("go-on").exists():
            time.sleep(0.05)
        if not place.exists():
            print(f"computed {{number}}", flush=True)
            place.write_text(str(os.getpid()))
            time.sleep(PAUSE)
    print("end of", share, count, flush=True)
"""


def step_of(tmp_path: Path, body: str = COUNTING, pause: float = 0.3, is_held: bool = False) -> SmallStep:
    settings = {"reference_array": 4, "cpus_per_node": 2}
    body = body.replace("PAUSE", str(pause)).replace("IS_HELD", str(is_held))
    return SmallStep(tmp_path, body, 1, settings, {"num_processes": 2}, step="reference")


def let_go(step: SmallStep) -> None:
    """Shares that are held, and those to come."""
    (step.folder / "go-on").touch()


def computed(step: SmallStep) -> list[int]:
    """What was computed by whomever, as the log says."""
    lines = (line.rpartition("] ")[2] for line in step.log_lines)
    return sorted(int(line.split()[1]) for line in lines if line.startswith("computed "))


def pids(step: SmallStep) -> list[int]:
    """Processes of shares that have computed something."""
    return [int(file.read_text() or 0) for file in (step.folder / "cache").glob("*")]


def test_shares_run_side_by_side_and_the_pass_follows(cluster: PrivateCluster, tmp_path):
    step, shown = step_of(tmp_path, is_held=True), list[ClusterJob]()
    with meanwhile(step, shown.append) as end:
        wait_for(lambda: any("RUNNING" in job.state and "of 4 done" in job.state for job in shown))
        let_go(step)
        assert end() == Ended(0)
    assert computed(step) == list(range(4 * LAST))
    ends = [line for line in step.log_lines if "end of" in line]
    assert sorted(ends[:-1]) == [f"[share {share}] end of {share} 4" for share in range(4)]
    assert ends[-1] == "end of 0 1"
    assert (step.num_starts, step.prepared) == (5, 2)
    assert not list(step.record.glob("share-*"))
    assert not saved_times(step.folder)
    assert len(shown[-1].starts) == 5
    assert {start.job_id.partition("_")[2] for start in shown[-1].starts} == {"0", "1", "2", "3", ""}
    assert cluster.jobs() == []


def test_a_share_that_is_killed_is_begun_again_and_the_others_go_on(cluster: PrivateCluster, tmp_path):
    stands_still = "time.sleep(600 if number == 1 else PAUSE)"
    step = step_of(tmp_path, COUNTING.replace("time.sleep(PAUSE)", stands_still))
    with meanwhile(step) as end:
        first = step.folder / "cache/001"
        wait_for(lambda: first.exists() and first.read_text())
        os.kill(int(first.read_text()), signal.SIGKILL)
        assert end() == Ended(0)
    assert computed(step) == list(range(4 * LAST))
    assert step.num_starts == 6
    assert sorted(line for line in step.log_lines if "end of 1 4" in line) == ["[share 1] end of 1 4"]


def test_a_killed_orchestrator_is_followed_by_one_that_attaches_to_the_array(
    cluster: PrivateCluster, tmp_path
):
    """Nothing is submitted again; what ended while nobody looked is read."""
    step = step_of(tmp_path, is_held=True)
    for reached in (3, 9):
        first = orchestrator(step)
        wait_for(lambda at=reached: len(computed(step)) >= at)
        first.send_signal(signal.SIGKILL)
        first.wait()
    let_go(step)
    wait_for(lambda: len(list((step.folder / "cache").iterdir())) == 4 * LAST)
    wait_for(lambda: cluster.jobs() == [])
    assert step.run() == Ended(0)
    assert (step.num_starts, step.prepared) == (5, 1)  # the pass alone was started
    assert computed(step) == list(range(4 * LAST))
    assert len([line for line in step.log_lines if "end of" in line]) == 5


def test_a_share_is_preempted_and_requeued_and_its_time_may_be_up(cluster: PrivateCluster, tmp_path):
    """The same job of the array is requeued; one that came to its time is followed by another if the cache has grown."""
    body = COUNTING.replace(
        "cache = ", "signal.signal(signal.SIGTERM, lambda *_: sys.exit(20))\n    cache = "
    )
    step = step_of(tmp_path, body, is_held=True)
    with meanwhile(step) as end:
        wait_for(lambda: step.num_starts == 4 and len(computed(step)) >= 2)  # all have begun
        cluster.ask(
            "sbatch", "-p", "urgent", "-w", "n1", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1"
        )
        wait_for(lambda: (cluster.start_now(), step.num_starts >= 6)[1])
        wait_for(lambda: not any(name == "wrap" for name, _ in cluster.jobs()))
        running = cluster.ask("squeue", "-h", "-t", "RUNNING", "--array", "-o", "%i").split()
        cluster.ask("scancel", "--signal=TERM", *running[:1])
        wait_for(lambda: step.num_starts >= 7)
        let_go(step)
        assert end() == Ended(0)
    assert computed(step) == list(range(4 * LAST))


def test_a_share_that_keeps_nothing_is_not_begun_for_ever(cluster: PrivateCluster, tmp_path):
    step = step_of(tmp_path, "sys.exit(20)")
    with pytest.raises(TimedOut, match="one shard must fit into one job"):
        step.run()
    assert cluster.jobs() == []
    step = step_of(tmp_path / "error", "sys.exit(11)")
    assert step.run() == Ended(11)
    assert cluster.jobs() == []


def test_a_cancelled_array_leaves_nothing_and_goes_on_later(cluster: PrivateCluster, tmp_path):
    step, stop = step_of(tmp_path, is_held=True), threading.Event()
    cluster.ask("sbatch", "--job-name=other", "-w", "n2", "-c2", "--output=/dev/null", "--wrap", "sleep 600")
    threading.Thread(
        target=lambda: (wait_for(lambda: len(computed(step)) >= 3), stop.set()), daemon=True
    ).start()
    with pytest.raises(Stopped):
        step.run(Context(stop=stop))
    assert [name for name, _ in cluster.jobs()] == ["other"]
    assert step.num_starts == 2  # what waited has not begun where the others ended
    cluster.ask("scancel", "--name=other")
    let_go(step)
    assert step.run() == Ended(0)
    assert computed(step) == list(range(4 * LAST))
    step = step_of(tmp_path / "by a person", is_held=True)
    threading.Thread(
        target=lambda: (
            wait_for(lambda: computed(step)),
            cluster.ask("scancel", f"--name={step.command().name}"),
        ),
        daemon=True,
    ).start()
    with pytest.raises(Cancelled, match="was cancelled by someone"):
        step.run()
    assert cluster.jobs() == []


def test_an_array_without_a_run_is_reaped_as_one(cluster: PrivateCluster, tmp_path):
    step = step_of(tmp_path, pause=600)
    running = orchestrator(step)
    wait_for(lambda: len(computed(step)) == 4)
    running.kill()
    running.wait()
    (found,) = reap_jobs(dry_run=False, state_of=lambda flow_run: "over")
    assert (found.step, found.done) == ("reference", "cancelled")
    assert cluster.jobs() == []


def test_shares_on_a_lost_node_are_begun_on_another_one(own_cluster: PrivateCluster, tmp_path):
    """A drained node's shares go on. Those of one that is lost are requeued, and what it still runs ends before."""
    hang = "time.sleep(600 if os.environ['SLURMD_NODENAME'] == 'n2' and number > 3 else PAUSE)"
    step = step_of(tmp_path, COUNTING.replace("time.sleep(PAUSE)", hang))
    with meanwhile(step) as end:
        wait_for(lambda: len(computed(step)) == 2 * LAST + 4)
        own_cluster.ask("scontrol", "update", "nodename=n1", "state=drain", "reason=test")
        own_cluster.kill_node("n2")
        wait_for(
            lambda: own_cluster.ask("sinfo", "-h", "-n", "n2", "-p", "train", "-o", "%t").startswith("down")
        )
        assert step.num_starts == 4
        own_cluster.ask("scontrol", "update", "nodename=n1", "state=resume")
        wait_for(lambda: (own_cluster.start_now(), step.num_starts >= 6)[1])
        ghosts = [file.read_text() for file in step.record.glob("share-*/*.0/ranks/rank-0.json")]
        assert sum('"code": 75' in ghost for ghost in ghosts) == 2
        assert end() == Ended(0)
    assert computed(step) == list(range(4 * LAST))
