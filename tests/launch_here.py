"""A launcher that runs a step in the test's own process: the program's real entry point, without 10 s of imports."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

from dpo_core.__main__ import main
from tasks.launch.compute import Machine, this_machine
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import Context
from tasks.launch.launcher import BeforeStart, CommandSpec, Ended, OnLine, StepImage
from tasks.launch.launchers import LauncherSections
from tasks.launch.reaped import OnlyOf, Reaped, StateOf


@dataclass(frozen=True)
class LaunchHere:
    """Implements ``Launcher``. ``steps``: the steps that ran, in order."""

    compute: ComputeConfig = field(default_factory=ComputeConfig)
    python: str = "python"
    steps: list[str] = field(default_factory=list)

    runs_in_image: ClassVar[bool] = False
    spans_machines: ClassVar[bool] = False
    queues: ClassVar[bool] = False

    @classmethod
    def of(cls, compute: ComputeConfig, sections: LauncherSections, image: StepImage | None) -> Self:
        """See ``Launcher.of``."""
        return cls(compute)

    @classmethod
    def target(cls, compute: ComputeConfig, sections: LauncherSections, step: str) -> Machine:
        """See ``Launcher.target``: this one."""
        return this_machine()

    def machine_for(self, step: str, context: Context) -> Machine:
        """See ``Launcher.machine_for``: this one."""
        return this_machine()

    def compute_for(self, step: str) -> ComputeConfig:
        """See ``Launcher.compute_for``: those of ``compute``."""
        return self.compute

    @classmethod
    def preview(cls, compute: ComputeConfig, sections: LauncherSections, command: CommandSpec) -> str:
        """See ``Launcher.preview``: the command."""
        return ""

    @classmethod
    def reap(cls, dry_run: bool, state_of: StateOf, only_of: OnlyOf) -> list[Reaped] | None:
        """See ``Launcher.reap``: a step dies with its orchestrator."""
        return None

    def clear(self, folder: Path, context: Context) -> None:
        """See ``Launcher.clear``: a process leaves nothing behind."""

    def run(
        self, commands: tuple[CommandSpec, ...], context: Context, on_line: OnLine, before_start: BeforeStart
    ) -> Ended:
        """See ``Launcher.run``."""
        (command,) = commands
        before_start()
        place = command.argv.index("--job")
        step, job = command.argv[place - 1], command.argv[place + 1]
        self.steps.append(step)
        return Ended(main([step, "--job", str(command.folder / Path(job))]))
