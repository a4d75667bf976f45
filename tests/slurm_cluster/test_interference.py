"""What people and administrators do to a job and to what watches it: stopped, drained, set down, never begun."""

import fcntl
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from dpo_core.contract.data_jobs import ConvertResult
from dpo_core.contract.progress import ProgressEvent
from examples.slurm.private_cluster import PrivateCluster
from tasks.launch import holder
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import Context, Stopped
from tasks.launch.launcher import Ended
from tasks.launch.own_folder import own_folder
from tasks.launch.run_job import run_job
from tasks.launch.slurm.config import SlurmConfig
from tasks.launch.slurm.launcher import SlurmLauncher
from tests.slurm_cluster.conftest import SecondsOf
from tests.slurm_cluster.small_step import SmallStep
from tests.slurm_cluster.test_faults import counting, let_go, meanwhile, numbers
from tests.slurm_cluster.test_launcher import cancel, orchestrator, wait_for
from tests.slurm_cluster.trial import FORK, processes
from tests.tasks.launch.test_run_job import Step
from tests.waiting import PATIENCE_SECONDS

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("cold_steps")]


# In the trainer's place; before it, as the nodes' interpreter, the first program of a task.
ONCE_STARTED = """
    import time
    for number in range(20):
        while number == 15 and not (folder / "go-on").exists():  # the second comes while the first is at work
            time.sleep(0.05)
        print("line", number, flush=True)
        time.sleep(0.2)
    succeed()
"""
AS_INTERPRETER = f"""\
if sys.argv[2] == "dpo_core.in_slurm":
    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
job_path ="""


class Lines:
    """What an orchestrator shows of a step, as lines of a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def line(self, line: str) -> None:
        with self.file.open("a") as file:
            file.write(line + "\n")

    def progress(self, event: ProgressEvent) -> None:
        pass

    def end(self) -> None:
        pass


def orchestrate(step: Step, launcher: SlurmLauncher, file: Path, machine: str = "") -> None:
    """Run the whole job, as a task of a flow does; on a machine of that name, whose locks reach no other one."""
    if machine:
        fcntl.flock = lambda *_: None
        holder.this_machine = lambda: machine
        holder.SECONDS_BETWEEN_SIGNS, holder.SECONDS_WITHOUT_A_SIGN = 0.5, 5.0
    result: ConvertResult = run_job(step.job, launcher, Context(lines=Lines(file)))
    Lines(file).line(f"result {result.files}")


@pytest.mark.parametrize("is_first_killed", [False, True], ids=["both live", "the first is killed"])
@pytest.mark.parametrize("machines", [("", ""), ("login1", "login2")], ids=["one machine", "unshared locks"])
def test_two_orchestrators_of_one_store_have_one_job(
    cluster: PrivateCluster, tmp_path, is_first_killed: bool, machines: tuple[str, str], seconds_of: SecondsOf
):
    step = Step(tmp_path, ONCE_STARTED)
    program = tmp_path / "trainer"
    program.write_text(program.read_text().replace("job_path =", AS_INTERPRETER, 1))
    launcher = SlurmLauncher(
        ComputeConfig(launcher="slurm", stop_grace_seconds=1), SlurmConfig(poll_seconds=1), str(program)
    )
    files = [tmp_path / "first.txt", tmp_path / "second.txt"]
    first, second = (
        FORK.Process(target=orchestrate, args=(step, launcher, file, machine))
        for file, machine in zip(files, machines, strict=True)
    )
    first.start()
    wait_for(lambda: "line 3" in lines_of(files[0]))
    second.start()
    wait_for(lambda: any("waits for another run to end" in line for line in lines_of(files[1])))
    if is_first_killed:
        with seconds_of("an orchestrator killed, until the one that waits has its job"):
            first.kill()
            wait_for(lambda: any("is running on" in line for line in lines_of(files[1])))
    (step.folder / "go-on").touch()
    for process in (first, second):
        process.join(timeout=PATIENCE_SECONDS / 2)
    assert (first.exitcode, second.exitcode) == (-9 if is_first_killed else 0, 0)
    results = [line for file in files for line in lines_of(file) if line.startswith("result ")]
    assert len(results) == 2 - is_first_killed
    assert len(set(results)) == 1
    assert step.num_calls == 1
    expected = [f"line {number}" for number in range(20)]
    log = (own_folder(step.folder) / "log.txt").read_text().splitlines()
    assert [line for line in log if line.startswith("line ")] == expected
    for file in files:
        shown = [line for line in lines_of(file) if line.startswith("line ")]
        assert len(shown) == len(set(shown))
    assert cluster.jobs() == []


def lines_of(file: Path) -> list[str]:
    """What one orchestrator has shown so far."""
    return file.read_text().splitlines() if file.exists() else []


def rank_of(step: SmallStep) -> int:
    """The process of a step of one rank."""
    file = str(step.folder / "job.json")
    return next(
        pid
        for pid, argv in processes()
        if file in argv and "-c" in argv[:2] and "in_slurm" not in " ".join(argv[:4])
    )


def test_a_rank_that_is_stopped_goes_on_and_can_be_cancelled(
    cluster: PrivateCluster, tmp_path, seconds_of: SecondsOf
):
    """A process that is stopped (kill -STOP, a debugger) hears no SIGTERM; Slurm ends it after the time for a checkpoint."""
    step = SmallStep(tmp_path / "a", counting(8, 6))
    with meanwhile(step) as end:
        wait_for(lambda: len(numbers(step)) >= 2)
        os.kill(pid := rank_of(step), signal.SIGSTOP)
        time.sleep(2)
        stood = len(numbers(step))
        assert stood < 8
        let_go(step, 6)
        with seconds_of("a rank goes on after it stood still, until it counts"):
            os.kill(pid, signal.SIGCONT)
            wait_for(lambda: len(numbers(step)) > stood)
        assert end() == Ended(0)
    assert (numbers(step), step.num_starts) == (list(range(8)), 1)
    step = SmallStep(tmp_path / "b", counting(10_000), compute={"stop_grace_seconds": 1})

    def stands_still() -> bool:
        wait_for(lambda: len(numbers(step)) >= 2)
        os.kill(rank_of(step), signal.SIGSTOP)
        return True

    cancel(step, stands_still, seconds_of("cancelled while a rank stands still, until it is gone"))
    assert cluster.jobs() == []
    with pytest.raises(StopIteration):
        rank_of(step)


def test_an_orchestrator_that_is_stopped_takes_up_what_came_meanwhile(cluster: PrivateCluster, tmp_path):
    step = SmallStep(tmp_path, counting(12, 8))
    running = orchestrator(step)
    wait_for(lambda: len(numbers(step)) >= 3)
    running.send_signal(signal.SIGSTOP)
    let_go(step, 8)
    wait_for(lambda: cluster.jobs() == [])
    assert len(numbers(step)) < 12
    running.send_signal(signal.SIGCONT)
    assert running.wait(timeout=PATIENCE_SECONDS) == 0
    assert (numbers(step), step.num_starts) == (list(range(12)), 1)


def test_a_drained_node_finishes_its_step_and_one_that_is_set_down_loses_it(
    cluster: PrivateCluster, tmp_path, seconds_of: SecondsOf
):
    step = SmallStep(tmp_path, counting(16, 10))
    with meanwhile(step) as end:
        wait_for(lambda: len(numbers(step)) >= 2)
        cluster.ask("scontrol", "update", "nodename=n1", "state=drain", "reason=test")
        wait_for(lambda: len(numbers(step)) >= 6)
        assert step.num_starts == 1
        with seconds_of("its node set down, until the start on another one"):
            cluster.ask("scontrol", "update", "nodename=n1", "state=down", "reason=test")
            wait_for(lambda: (cluster.start_now(), step.num_starts == 2)[1])
        let_go(step, 10)
        assert end() == Ended(0)
    cluster.ask("scontrol", "update", "nodename=n1", "state=resume")
    cluster.wait_for_nodes("idle")
    assert (step.num_starts, step.prepared) == (2, 1)
    counted = numbers(step)  # what was printed as srun was killed is lost
    assert counted == sorted(set(counted))
    assert counted[-1] == 15


def test_a_queue_that_never_starts_can_be_left(cluster: PrivateCluster, tmp_path):
    cluster.ask("scontrol", "update", "partition=train", "state=down")
    step, stop, said = SmallStep(tmp_path, "", settings={"poll_seconds": 0.5}), threading.Event(), []

    def seen(job: object) -> None:
        said.append(job)
        if getattr(job, "reason", ""):
            stop.set()

    try:
        with pytest.raises(Stopped):
            step.run(Context(stop=stop, on_cluster_job=seen))
    finally:
        cluster.ask("scontrol", "update", "partition=train", "state=up")
    assert "PartitionDown" in {job.reason for job in said}
    assert (cluster.jobs(), step.num_starts) == ([], 0)
