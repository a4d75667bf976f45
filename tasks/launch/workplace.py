"""Where a task works: it says what it wants to have run, and gets the result."""

from dataclasses import dataclass, field
from pathlib import Path

from dpo_core.contract.job import Job, R
from tasks.launch.context import Context
from tasks.launch.launcher import Launcher
from tasks.launch.run_job import in_store, reusable_result, run_job


@dataclass(frozen=True, slots=True)
class Workplace:
    """The store that runs share, what starts steps, and for whom."""

    store: Path
    launcher: Launcher
    context: Context = field(default_factory=Context)

    def run(self, job: Job[R], folder: Path | None = None) -> R:
        """Return the verified result of ``job``, reused where it is in the store already; see ``run_job`` for what it
        raises.

        ``folder``: where to run it instead of its place in the store.
        """
        return run_job(
            in_store(job, self.store) if folder is None else job.at(folder), self.launcher, self.context
        )

    def has_result(self, job: Job) -> bool:
        """Return whether ``run`` would find a result that verifies. To ask is to read all of its files."""
        return reusable_result(in_store(job, self.store)) is not None
