"""A reference pass in shares: jobs of one array, each of one card, which Slurm starts wherever a card is free.

Each holds the whole model and fills the cache with its share of the batches (``dpo_core.steps.reference.run_share``); the
pass itself follows as a job of one card, finds all of it there, and would compute what is not.
"""

import contextlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from dpo_core.contract.errors import PairlineError
from dpo_core.contract.job import JOB_FILE
from dpo_core.contract.job_registry import read_job
from dpo_core.contract.jobs import ReferenceJob
from dpo_core.contract.reference_folder import SHARDS, model_cache_folder
from tasks.launch.compute import Machine
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.launcher import CommandSpec
from tasks.launch.slurm.config import SlurmConfig
from tasks.launch.slurm.names import share_folder
from tasks.launch.slurm.record import Start, starts_of, text_of

# What a step is where every process holds the whole model and knows no other one.
ALONE = {
    "num_processes": 1,
    "machines": 1,
    "sharding": "none",
    "shard_degree": None,
    "tensor_degree": 1,
    "offload": "none",
}


@dataclass(frozen=True, slots=True)
class Shares:
    """Which shares a submission is of. ``is_again``: others of the same pass may be at work beside it."""

    indices: tuple[int, ...]
    count: int
    is_again: bool = False

    @property
    def ranges(self) -> str:
        """The indices as sbatch writes them: 0-3,7."""
        breaks = [at + 1 for at, (a, b) in enumerate(pairwise(self.indices)) if b != a + 1]
        runs = [self.indices[a:b] for a, b in pairwise([0, *breaks, len(self.indices)])]
        return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def compute_of_step(compute: ComputeConfig, slurm: SlurmConfig, step: str) -> ComputeConfig:
    """Return the processes of a step's job: a reference pass in shares is one, as its shares are."""
    return compute.model_copy(update=ALONE) if slurm.num_shares(step) else compute


def parts_of_a_node(compute: ComputeConfig, slurm: SlurmConfig, step: str) -> int:
    """Return how many of a step's jobs a node has room for: a share gets what a card's process would get of it."""
    if not slurm.num_shares(step):
        return 1
    return max(1, slurm.num_gpus(step), compute.num_processes // compute.machines)


def node_asked_for(compute: ComputeConfig, slurm: SlurmConfig, step: str) -> Machine:
    """Return what the recipe says that a step asks for of a node; 0 for what it leaves to the cluster."""
    parts, num_gpus = parts_of_a_node(compute, slurm, step), slurm.num_gpus(step)
    return Machine(
        max(1, slurm.cpus_per_node // parts) if slurm.cpus_per_node else 0,
        min(1, num_gpus) if slurm.num_shares(step) else num_gpus,
        round((slurm.memory_gib or 0) * 2**30 / parts),
    )


def ended_well(command: CommandSpec, record: Path, count: int) -> set[int]:
    """Return the shares whose newest start said so, of itself and of its process; none if the cache has lost all values
    since: they would be left to the one job that follows."""
    ended = {index for index in range(count) if _ended_well(share_folder(record, index, count))}
    return ended if ended and _has_values(command) else set()


def _ended_well(folder: Path) -> bool:
    _, newest = newest_start(folder)
    return newest is not None and newest.is_good


def newest_start(folder: Path) -> tuple[str, Start | None]:
    """Return the newest start of a share, None where it has left nothing, and what the starts of its submission are called
    in the share's ``folder``."""
    key, _, number = text_of(folder / "attempt").strip().rpartition(".")
    starts = starts_of(folder, key) if key else []
    return key, next((start for start in starts if str(start.number) == number), None)


def _has_values(command: CommandSpec) -> bool:
    with contextlib.suppress(PairlineError):
        job = read_job(command.folder / JOB_FILE)
        return not isinstance(job, ReferenceJob) or any(model_cache_folder(job).glob(SHARDS))
    return True  # of a job that cannot be read nothing is known


def forget_shares(record: Path, but: Iterable[int] = (), count: int = 0) -> None:
    """Remove the records of shares, but these of so many."""
    kept = {share_folder(record, index, count) for index in but}
    for place in record.glob("share-*-of-*"):
        if place not in kept:
            with contextlib.suppress(OSError):
                shutil.rmtree(place)
