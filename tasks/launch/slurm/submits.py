"""What of the launcher an array of shares needs."""

from collections.abc import Callable
from typing import Protocol

from tasks.launch.context import Context
from tasks.launch.launcher import BeforeStart, CommandSpec
from tasks.launch.slurm.batch import BatchJob
from tasks.launch.slurm.client import QueuedJob
from tasks.launch.slurm.shares import Shares
from tasks.launch.slurm.watch import JobLimits


class Submits(Protocol):
    """The part of ``SlurmLauncher`` that describes jobs and waits for Slurm's answers."""

    def prepare(self, command: CommandSpec, before_start: BeforeStart) -> None: ...

    def describe(
        self, command: CommandSpec, context: Context, key: str, shares: Shares | None = None
    ) -> BatchJob: ...

    def limits(self, command: CommandSpec, spent: float) -> JobLimits: ...

    def patiently(self, ask: Callable[[], list[QueuedJob]], context: Context) -> list[QueuedJob]: ...
