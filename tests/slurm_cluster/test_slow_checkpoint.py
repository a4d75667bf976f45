"""A checkpoint that takes longer than a site's KillWait: lost where Slurm kills, kept where it is only asked."""

import time

import pytest

from examples.slurm.private_cluster import PrivateCluster
from tasks.launch.cluster_job import ClusterJob
from tasks.launch.launcher import Ended
from tests.slurm_cluster.small_step import SmallStep
from tests.slurm_cluster.test_faults import let_go, meanwhile, numbers
from tests.slurm_cluster.test_launcher import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("cold_steps")]
LONGER_THAN_KILL_WAIT = 6.5  # seconds; the private cluster's is 5, which is the least that slurmd gives a job
LAST = 15
# As a trainer does: a checkpoint every five, aside until it is whole, and one when it is asked to stop. That one takes until
# the test says that it is ``written``.
COUNTING = f"""
    kept = Path("checkpoints")
    kept.mkdir(exist_ok=True)
    asked = []
    on_stop(lambda: asked.append(True))
    def keep(number):
        aside = kept / f".step-{{number:08d}}"
        aside.touch()
        while asked and not Path(f"written-{{number}}").exists():
            time.sleep(0.05)
        aside.rename(kept / f"step-{{number:08d}}")
    for number in range(max((int(one.name[5:]) for one in kept.glob("step-*")), default=0), {LAST}):
        while number in (8, 12) and not asked and not Path(f"go-on-{{number}}").exists():
            time.sleep(0.05)
        if asked:
            print("begins to stop", flush=True)
            keep(number)
            print("stopped at", number, flush=True)
            sys.exit(20)
        print("number", number, flush=True)
        if (number + 1) % 5 == 0:
            keep(number + 1)
"""


def test_what_is_killed_in_a_checkpoint_goes_on_from_the_one_before_and_what_is_asked_from_its_own(
    cluster: PrivateCluster, tmp_path
):
    """Preempted it is killed; before its time limit it is asked, as ``sbatch --signal`` does."""
    step, shown = SmallStep(tmp_path, COUNTING), list[ClusterJob]()
    with meanwhile(step, shown.append) as end:
        wait_for(lambda: numbers(step)[-1:] == [7])
        cluster.ask("sbatch", "-p", "urgent", "-N2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")
        wait_for(lambda: "begins to stop" in step.log_lines)
        let_go(step, 8)
        wait_for(lambda: (cluster.start_now(), numbers(step)[-1:] == [11])[1])
        cluster.ask("scancel", "--signal=TERM", shown[-1].id)
        wait_for(lambda: step.log_lines.count("begins to stop") == 2)
        time.sleep(LONGER_THAN_KILL_WAIT)
        let_go(step, 12)
        (step.folder / "written-12").touch()
        assert end() == Ended(0)
    assert [line for line in step.log_lines if line.startswith("stopped")] == ["stopped at 12"]
    assert numbers(step) == [*range(8), *range(5, LAST)]
    assert [start.from_step for start in shown[-1].starts] == [None, 5, 12]
    assert cluster.jobs() == []
