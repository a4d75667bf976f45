"""A node that is lost, and is back as the job's next start begins: Slurm ends by the job's id what the node still runs."""

import os
import signal
import textwrap
from contextlib import suppress
from functools import partial
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
WAITING = """
if rank:
    while not Path("done").exists():
        time.sleep(0.05)
    sys.exit(0)
"""


def is_task_of(start: Path, argv: list[str]) -> bool:
    """Whether these are the arguments of the first program of a start's task."""
    return "dpo_core.in_slurm" in argv and str(start) in argv and not argv[0].endswith("srun")


def test_a_start_that_ends_with_what_a_lost_node_ran_is_followed_by_another_job(
    own_cluster: PrivateCluster, tmp_path, seconds_of: SecondsOf
):
    """In the same call: no retry is used. slurmd kills at most some seconds after its node is back, and a busy machine may
    begin the start later: here the test does it, to what slurmd has met if it was in time."""
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
            again = first.with_suffix(".1")
            pid = wait_until(
                lambda: (
                    own_cluster.start_now(),
                    process_on("n2", partial(is_task_of, again)) or (again / "exit").exists(),
                )[1]
            )
            if pid is not True:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            let_go(step, HELD_AT)
            assert end() == Ended(0)
    assert numbers(step) == list(range(LAST))
    assert step.prepared == 2
    starts = shown[-1].starts
    assert len(starts) == 3, starts
    assert starts[0].job_id == starts[1].job_id != starts[2].job_id
