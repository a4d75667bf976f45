"""The real trainer on two nodes, preempted, cut off from one of them and asked to stop: the weights of a run in peace."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dpo_core.contract.jobs import Sharding, TrainResult
from examples.slurm.private_cluster import PrivateCluster
from tasks.launch.cluster_job import ClusterJob
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import Context
from tasks.launch.launcher import launcher_for
from tasks.launch.launchers import LauncherSections
from tasks.launch.run_job import in_store, run_job
from tasks.launch.slurm.config import SlurmConfig
from tests.slurm_cluster.conftest import SecondsOf
from tests.slurm_cluster.trial import process_on
from tests.tiny_stage import TinyStage
from tests.waiting import PATIENCE_SECONDS, Value, wait_until
from tests.warm.started import at_work

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("small_chunks")]
RANKS = {"num_processes": 2, "sharding": "zero3", "threads_per_process": 1}


@dataclass
class Training:
    """One at work on a cluster, and what its run's page is shown."""

    cluster: PrivateCluster
    folder: Path
    running: "Future[TrainResult] | None" = None
    shown: list[ClusterJob] = field(default_factory=list)

    def wait_for(self, condition: Callable[[], Value]) -> Value:
        """Wait until that holds, or until it cannot any more: the training is over."""
        assert self.running is not None

        def holds() -> Value:
            value, is_over = condition(), self.running.done()
            assert value or not is_over, f"it ended: {self.running.result()}"  # raises what it ended with
            return value

        return wait_until(holds, tell=lambda: f"{self.shown[-1:]}\n{self.cluster.logs()}")

    def rank_on(self, node: str) -> int | None:
        """The process that is the rank's task there, or stands in for it."""
        return process_on(node, self._is_rank)

    def _is_rank(self, argv: list[str]) -> bool:
        """Whether these are a rank's arguments: in_slurm has ``dpo_core`` among its own, too, as what it starts."""
        is_ours = any(str(self.folder) in part for part in argv)
        return is_ours and "dpo_core" in argv and "dpo_core.in_slurm" not in argv

    def newest(self) -> int:
        """The step of the newest whole checkpoint."""
        kept = (self.folder / "checkpoints").glob("step-*")
        return max((int(one.name.removeprefix("step-")) for one in kept), default=0)

    @contextmanager
    def standing_still(self, node: str) -> Iterator[int]:
        """Hold the rank of a node, and with it all others, once there is a checkpoint of a later step: what is done to the
        training meets it at work, however fast it is."""
        task, after_step = self.wait_for(lambda: self.rank_on(node)), self.newest()
        self.wait_for(lambda: self.newest() > after_step)
        pid = at_work(task)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield pid
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def goes_on(self, number: int) -> None:
        """Wait until it has begun so often, and has gone on from where it stood."""
        self.wait_for(lambda: (self.cluster.start_now(), len(self.shown[-1].starts) >= number)[1])
        stood_at = self.newest()
        self.wait_for(lambda: self.newest() > stood_at)

    def lose(self, node: str) -> None:
        """Kill the node's daemon, and start it again once the job has been requeued. What the job left there is killed: by
        the job's id, once a second, for as long as anything of it lives, the next start included (else Slurm's two minutes,
        which ``start_now`` ends, are longer than that)."""
        self.cluster.kill_node(node)
        self.wait_for(lambda: "PENDING" in dict(self.cluster.jobs()).values())
        self.cluster.start_node(node)
        self.cluster.wait_for_nodes("idle")
        spool = self.cluster.folder / f"spool-{node}"
        self.wait_for(lambda: not list(spool.glob(f"{node}_*")))  # sockets of what runs steps
        time.sleep(
            1.5
        )  # a second between its looks, and what a node may launch of a job it tells apart by the second


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


def test_weights_of_a_training_that_met_every_fault_are_those_of_one_in_peace(
    own_cluster: PrivateCluster, tmp_path, seconds_of: SecondsOf
):
    """Requeued after a preemption; requeued without a node, whose rank was left there; gone on in another job."""
    job = TinyStage.make(tmp_path / "stage").train_job(
        Path("unset"),
        processes=2,
        per_device=1,
        num_epochs=5,  # 45 steps
        checkpoint_every=3,
        sharding=Sharding(kind="zero3"),
    )
    sections = LauncherSections(slurm=SlurmConfig(poll_seconds=1))
    spread = launcher_for(ComputeConfig(launcher="slurm", machines=2, **RANKS), sections)
    placed, stop = in_store(job, tmp_path / "slurm"), threading.Event()
    training = Training(own_cluster, placed.out_dir)
    context = Context(stop=stop, on_cluster_job=training.shown.append)
    with ThreadPoolExecutor(1) as pool:
        training.running = pool.submit(run_job, placed, spread, context)
        try:
            with training.standing_still("n1") as pid, seconds_of("trainer: preempted, until it is asked"):
                urgent = ("-p", "urgent", "-N2", "--exclusive", "--output=/dev/null", "--wrap", "true")
                own_cluster.ask("sbatch", *urgent)
                training.wait_for(lambda: is_asked_to_stop(pid))
            with seconds_of("trainer: let stop, until it trains again"):
                training.goes_on(2)
            with training.standing_still("n2"), seconds_of("trainer: cut off, until its node is back"):
                training.lose("n2")
            with seconds_of("trainer: its node back, until it trains again"):
                training.goes_on(3)
            with training.standing_still("n1") as pid:
                own_cluster.ask("scancel", "--signal=TERM", training.shown[-1].id)
                training.wait_for(lambda: is_asked_to_stop(pid))
            with seconds_of("trainer: asked to stop, until it trains again"):
                training.goes_on(4)
            trained = training.running.result(PATIENCE_SECONDS)
        finally:
            stop.set()
    starts = training.shown[-1].starts
    assert len({start.job_id for start in starts}) == 2, starts
    from_steps = [start.from_step for start in starts]
    assert (len(starts), from_steps[0]) == (4, None)
    assert 3 <= from_steps[1] < from_steps[2] < from_steps[3] < 45
    assert trained.resumed_from_step == from_steps[3]
    here = launcher_for(ComputeConfig(**RANKS), sections)
    assert run_job(in_store(job, tmp_path / "process"), here).weights_sha256 == trained.weights_sha256
    assert own_cluster.jobs() == []
