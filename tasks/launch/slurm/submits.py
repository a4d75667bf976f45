"""What of the launcher an array of shares needs."""

from typing import Protocol

from tasks.launch.context import Context
from tasks.launch.launcher import BeforeStart, CommandSpec
from tasks.launch.slurm.batch import BatchJob
from tasks.launch.slurm.followed import JobLimits
from tasks.launch.slurm.shares import Shares


class Submits(Protocol):
    """The part of ``SlurmLauncher`` that describes jobs and waits for Slurm's answers."""

    def prepare(self, command: CommandSpec, before_start: BeforeStart) -> None: ...

    def describe(
        self, command: CommandSpec, context: Context, key: str, shares: Shares | None = None
    ) -> BatchJob: ...

    def limits(self, command: CommandSpec, spent: float) -> JobLimits: ...

    @property
    def patience_seconds(self) -> float: ...
