"""A step whose program is a few lines of the test's own, run as a job of the private cluster.

How a job is submitted, found again, stopped and judged does not depend on what is computed in it.
"""

import json
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import Context
from tasks.launch.launcher import CommandSpec, Ended, Node
from tasks.launch.own_folder import own_folder
from tasks.launch.slurm.config import SlurmConfig
from tasks.launch.slurm.launcher import SlurmLauncher
from tasks.launch.step_log import step_log

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
rank = int(os.environ.get("RANK", 0))
with open("starts", "a") as starts:
    starts.write(f"{rank}\\n")
def on_stop(answer):
    def first(*_):
        # As a trainer does: Slurm signals each process of a job that it tracks, and the first passes it on.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        answer()
    signal.signal(signal.SIGTERM, first)
"""


@dataclass
class SmallStep:
    """``body`` is run by every rank in the job's folder, after ``PROGRAM``."""

    root: Path
    body: str
    num_ranks: int = 1
    settings: dict = field(default_factory=dict)
    compute: dict = field(default_factory=dict)
    patience_seconds: float = 60.0
    prepared: int = 0  # how often it was started
    step: str = "train"

    @property
    def folder(self) -> Path:
        return self.root / "store" / self.step / "0123456789abcdef"

    @property
    def record(self) -> Path:
        return own_folder(self.folder) / "slurm"

    @property
    def launcher(self) -> SlurmLauncher:
        compute = {"launcher": "slurm", "stop_grace_seconds": 20, "step_timeout_seconds": 600} | self.compute
        slurm = SlurmConfig(**{"poll_seconds": 1.0} | self.settings)
        return SlurmLauncher(ComputeConfig(**compute), slurm, sys.executable, self.patience_seconds)

    def command(self, **more: object) -> CommandSpec:
        compute = self.launcher.compute
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "job.json").write_text("{}")
        told = {
            "argv": (sys.executable,),
            "folder": self.folder,
            "timeout_seconds": compute.step_timeout_seconds,
            "program": ("-c", PROGRAM + textwrap.dedent(self.body), str(self.folder / "job.json")),
            "num_processes": self.num_ranks,
            "node": Node(0, self.num_ranks),
            "step": self.step,
            "writable": (self.folder / "cache",) if self.step == "reference" else (),
            "job_fingerprint": "0123456789abcdef" * 4,
            "stop_grace_seconds": compute.stop_grace_seconds,
        }
        return CommandSpec(**told | more)

    def run(self, context: Context = Context(), **more: object) -> Ended:
        """Run it as ``run_job`` does: with its log."""
        with step_log(self.folder, context) as log:
            return self.launcher.run((self.command(**more),), context, log.line, self._prepare)

    def _prepare(self) -> None:
        self.prepared += 1

    @property
    def log_lines(self) -> list[str]:
        """What stands in log.txt."""
        log = own_folder(self.folder) / "log.txt"
        return log.read_text().splitlines() if log.exists() else []

    @property
    def num_starts(self) -> int:
        """How often a rank has begun."""
        starts = self.folder / "starts"
        return len(starts.read_text().splitlines()) if starts.exists() else 0


if __name__ == "__main__":  # an orchestrator that can be killed
    told = json.loads(sys.argv[2])
    SmallStep(Path(sys.argv[1]), **told).run()
