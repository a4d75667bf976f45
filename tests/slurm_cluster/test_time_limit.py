"""A chain of jobs by Slurm's own clock: asked before a job's limit, ended at the limit if it does not listen."""

import pytest

from examples.slurm.private_cluster import PrivateCluster
from tasks.launch.cluster_job import ClusterJob
from tasks.launch.launcher import Ended
from tests.slurm_cluster.conftest import SecondsOf
from tests.slurm_cluster.small_step import SmallStep
from tests.slurm_cluster.test_faults import counting, let_go, meanwhile, numbers
from tests.slurm_cluster.test_launcher import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("cold_steps")]
DEAF = """
        if Path("deaf").exists():
            print("does not listen", flush=True)
            return
"""


def lower_the_limit(cluster: PrivateCluster) -> None:
    """To a minute. 50 s before, the job is asked to stop: its grace and 30 s."""
    (job_id,) = cluster.ask("squeue", "-h", "-o", "%i").split()
    cluster.ask("scontrol", "update", f"jobid={job_id}", "timelimit=1")


def test_a_chain_of_three_jobs_by_slurms_own_clock_counts_each_number_once(
    cluster: PrivateCluster, tmp_path, seconds_of: SecondsOf
):
    """Slurm looks at limits every half a minute, and lets none be shorter than a minute: two minutes of waiting."""
    step = SmallStep(tmp_path, counting(12, 4, 8).replace("def stop():\n", f"def stop():{DEAF}", 1))
    shown: list[ClusterJob] = []
    with meanwhile(step, shown.append) as end:
        wait_for(lambda: numbers(step)[-1:] == [3])
        lower_the_limit(cluster)
        wait_for(lambda: "stopped" in step.log_lines)
        (step.folder / "deaf").touch()
        let_go(step, 4)
        with seconds_of("asked by Slurm before the limit, until the next job counts"):
            wait_for(lambda: 4 in numbers(step))
        wait_for(lambda: numbers(step)[-1:] == [7])
        lower_the_limit(cluster)
        with seconds_of("a limit of a minute, until the job after the one that did not listen"):
            wait_for(lambda: step.num_starts == 3)
        let_go(step, 8)
        assert end() == Ended(0)
    assert [line for line in step.log_lines if line in ("stopped", "does not listen")] == [
        "stopped",
        "does not listen",
    ]
    assert numbers(step) == list(range(12))
    starts = shown[-1].starts
    assert [start.from_step for start in starts] == [None, 3, 7]
    assert len({start.job_id for start in starts}) == 3
    assert starts[0].seconds < 55 < starts[1].seconds  # asked in time; ended at the limit
    assert cluster.jobs() == []
