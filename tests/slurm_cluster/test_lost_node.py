"""A node that is lost, and is back as the job's next start begins: Slurm ends by the job's id what the node still runs."""

import os
import signal
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest

from examples.slurm.private_cluster import PrivateCluster
from tasks.launch.cluster_job import ClusterJob
from tasks.launch.launcher import Ended
from tests.slurm_cluster.conftest import SecondsOf
from tests.slurm_cluster.small_step import SmallStep
from tests.slurm_cluster.test_faults import counting, let_go, meanwhile, numbers
from tests.slurm_cluster.trial import process_on
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("cold_steps")]
LAST, HELD_AT = 8, 4
PROGRAM = "dpo_core.in_slurm"
WAITING = """
if rank:
    while not Path("done").exists():
        time.sleep(0.05)
    sys.exit(0)
"""


def end_task_of_a_later_start(first: Path) -> None:
    """Kill the first program of the task that a start of the same job, but for the first, runs on the node that was lost."""

    def is_it(argv: list[str]) -> bool:
        if PROGRAM not in argv or argv[0].endswith("srun"):
            return False
        start = Path(argv[argv.index(PROGRAM) + 1])
        return start != first and start.with_suffix(first.suffix) == first

    if pid := process_on("n2", is_it):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_start_that_ends_with_what_a_lost_node_ran_is_followed_by_another_job(
    own_cluster: PrivateCluster, tmp_path, seconds_of: SecondsOf
):
    """In the same call: no retry is used. slurmd kills at most some seconds after its node is back, and a busy machine may
    begin the start later, or lose the node once more: here the test does it to each start that slurmd has spared."""
    counts = textwrap.dedent(counting(LAST, HELD_AT)) + 'Path("done").touch()\n'
    step = SmallStep(tmp_path, WAITING + counts, 2, {}, {"machines": 2, "num_processes": 2})
    shown: list[ClusterJob] = []
    with meanwhile(step, shown.append) as end:
        wait_until(lambda: len(numbers(step)) == HELD_AT)
        with seconds_of("a node lost, back with the next start, until another job has done the rest"):
            own_cluster.kill_node("n2")
            wait_until(lambda: "PENDING" in dict(own_cluster.jobs()).values())
            own_cluster.start_node("n2")
            (first,) = step.record.glob("*.0")

            def another_job_has_begun() -> bool:
                own_cluster.start_now()
                end_task_of_a_later_start(first)
                return any(start != first for start in step.record.glob("*.0"))

            wait_until(another_job_has_begun, "another job", lambda: f"{shown[-1:]}\n{own_cluster.logs()}")
            let_go(step, HELD_AT)
            assert end() == Ended(0)
    assert numbers(step) == list(range(LAST))
    assert step.prepared == 2
    jobs = [start.job_id for start in shown[-1].starts]
    assert len(jobs) >= 3, jobs
    assert jobs == [jobs[0]] * (len(jobs) - 1) + [jobs[-1]]
    assert jobs[-1] != jobs[0]
