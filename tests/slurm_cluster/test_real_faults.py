"""The real trainer on two nodes, preempted, cut off from one of them and asked to stop: the weights of a run in peace."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from dpo_core.contract.jobs import Sharding
from examples.slurm.private_cluster import PrivateCluster
from tasks.launch.cluster_job import ClusterJob
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import Context
from tasks.launch.launcher import launcher_for
from tasks.launch.launchers import LauncherSections
from tasks.launch.run_job import in_store, run_job
from tasks.launch.slurm.config import SlurmConfig
from tests.slurm_cluster.test_launcher import wait_for
from tests.slurm_cluster.trial import processes
from tests.tiny_stage import TinyStage
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.integration
RANKS = {"num_processes": 2, "sharding": "zero3", "threads_per_process": 1}


def rank_on(node: str, folder: Path) -> int | None:
    """The process of the rank that works on the folder there."""
    place = f"SLURMD_NODENAME={node}".encode()
    for pid, argv in processes():
        if not any(str(folder) in part for part in argv) or "dpo_core" not in argv:
            continue  # in_slurm names "dpo_core.in_slurm", and what srun starts as one of its arguments
        if "dpo_core.in_slurm" in argv:
            continue
        try:
            if place in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                return pid
        except OSError:
            continue
    return None


def is_asked_to_stop(pid: int) -> bool:
    """Whether a SIGTERM waits for a process that stands still, or it has been killed."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    pending = [
        int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd"))
    ]
    return any(mask >> (signal.SIGTERM - 1) & 1 for mask in pending) or "State:\tZ" in status


def newest(folder: Path) -> int:
    """The step of the newest whole checkpoint."""
    kept = (folder / "checkpoints").glob("step-*")
    return max((int(one.name.removeprefix("step-")) for one in kept), default=0)


@contextmanager
def standing_still(node: str, folder: Path, after_step: int) -> Iterator[int]:
    """Hold the rank of a node, and with it all others, once there is a checkpoint of a later step: what is done to the
    training meets it at work, however fast it is."""
    pid = wait_for(lambda: rank_on(node, folder))
    wait_for(lambda: newest(folder) > after_step)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def state_of(cluster: PrivateCluster, partition: str = "train") -> str:
    """Of the one job there."""
    return cluster.ask("squeue", "-h", "-p", partition, "-o", "%T").strip()


def starts_again(cluster: PrivateCluster, shown: list[ClusterJob], number: int) -> None:
    """Wait until the training has begun so often."""
    wait_for(lambda: (cluster.start_now(), len(shown[-1].starts) >= number)[1])


def test_weights_of_a_training_that_met_every_fault_are_those_of_one_in_peace(
    own_cluster: PrivateCluster, tmp_path
):
    """Requeued after a preemption; requeued without a node, whose rank was left there; gone on in another job."""
    stage = TinyStage.make(tmp_path / "stage")
    job = stage.train_job(
        Path("unset"),
        processes=2,
        per_device=1,
        num_epochs=20,  # 180 steps
        checkpoint_every=3,
        sharding=Sharding(kind="zero3"),
    )
    sections = LauncherSections(slurm=SlurmConfig(poll_seconds=1))
    spread = launcher_for(ComputeConfig(launcher="slurm", machines=2, **RANKS), sections)
    training, shown, stop = in_store(job, tmp_path / "slurm"), list[ClusterJob](), threading.Event()
    folder = training.out_dir
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_job, training, spread, Context(stop=stop, on_cluster_job=shown.append))
        try:
            with standing_still("n1", folder, 0) as pid:
                urgent = ("-p", "urgent", "-N2", "--exclusive", "--output=/dev/null", "--wrap", "true")
                own_cluster.ask("sbatch", *urgent)
                wait_for(lambda: is_asked_to_stop(pid))
            starts_again(own_cluster, shown, 2)
            with standing_still("n2", folder, newest(folder)) as pid:
                own_cluster.kill_node("n2")
                wait_for(lambda: state_of(own_cluster) == "PENDING")
                own_cluster.start_node("n2")
                own_cluster.wait_for_nodes("idle")
                wait_for(
                    lambda: rank_on("n2", folder) is None
                )  # the node is told that the job is not there any more
                time.sleep(1.1)  # what a node may launch of a job it tells apart by the second
            starts_again(own_cluster, shown, 3)
            with standing_still("n1", folder, newest(folder)) as pid:
                own_cluster.ask("scancel", "--signal=TERM", shown[-1].id)
                wait_for(lambda: is_asked_to_stop(pid))
            trained = running.result(PATIENCE_SECONDS)
        finally:
            stop.set()
    starts = shown[-1].starts
    assert len({start.job_id for start in starts}) == 2, starts
    from_steps = [start.from_step for start in starts]
    assert (len(starts), from_steps[0]) == (4, None)
    assert 3 <= from_steps[1] < from_steps[2] < from_steps[3] < 180
    assert trained.resumed_from_step == from_steps[3]
    here = launcher_for(ComputeConfig(**RANKS), sections)
    assert run_job(in_store(job, tmp_path / "process"), here).weights_sha256 == trained.weights_sha256
    assert own_cluster.jobs() == []
