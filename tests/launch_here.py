"""A launcher that runs a step in the test's own process: the program's real entry point, without 10 s of imports."""

from dataclasses import dataclass, field
from pathlib import Path

from dpo_core.__main__ import main
from dpo_core.config import ComputeConfig
from tasks.launch.launcher import CommandSpec, OnLine


@dataclass(frozen=True)
class LaunchHere:
    """Implements ``Launcher``. ``steps``: the steps that ran, in order."""

    compute: ComputeConfig = field(default_factory=ComputeConfig)
    python: str = "python"
    steps: list[str] = field(default_factory=list)

    def run(self, command: CommandSpec, on_line: OnLine) -> int:
        """See ``Launcher.run``."""
        place = command.argv.index("--job")
        step, job = command.argv[place - 1], command.argv[place + 1]
        self.steps.append(step)
        return main([step, "--job", str(command.folder / Path(job))])
