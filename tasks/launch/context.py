"""For whom steps run: one frozen value that is handed on from the flow to the launcher. Nobody looks it up."""

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from dpo_core.contract.job import Job
from dpo_core.contract.progress import ProgressEvent
from tasks.launch.cluster_job import ClusterJob

OnProgress = Callable[[ProgressEvent], None]
OnClusterJob = Callable[[ClusterJob], None]
Moment = Literal["reused", "started", "ended"]
OnJob = Callable[[Job, Moment], None]


@dataclass(frozen=True, slots=True)
class RunName:
    """On whose behalf steps run; stands in logs and on what is started, decides nothing."""

    name: str = ""
    flow_run_id: str = ""
    family: str = "dpo"  # ``config.name``: artifacts carry it in their keys


class Stopped(BaseException):
    """The run that a step belongs to is being stopped. No failure of the step's, so nothing retries it."""


class LineListener(Protocol):
    """Hears the log lines of steps while they run."""

    def line(self, line: str) -> None:
        """Take a line that the step printed."""

    def progress(self, event: ProgressEvent) -> None:
        """Take where the step stands."""

    def end(self) -> None:
        """Take that the step has ended."""


@dataclass(frozen=True, slots=True)
class Context:
    """Whose run, who listens, what stops it, which secrets. Made by the flow; ``replace`` it for a part of a run."""

    run: RunName = RunName()
    on_progress: OnProgress | None = None  # the command line's bars
    lines: LineListener | None = None
    on_job: OnJob | None = (
        None  # the run's folder records the jobs that it uses, also those of a run that fails
    )
    before_step: OnJob | None = (
        None  # hears of jobs first, also those of a sweep's members; what it raises starts none
    )
    on_cluster_job: OnClusterJob | None = None  # the run's page: where a step that is queued elsewhere stands
    stop: threading.Event | None = None  # for threads: a signal reaches the main one alone
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)  # for the steps that name them

    def secret(self, name: str) -> str | None:
        """Return the value given in this context, else the environment's. Nothing else that the process starts inherits
        it. Without the blanks and line ends that files and other engines' secrets leave behind it.
        """
        return (self.secrets.get(name) or os.environ.get(name) or "").strip() or None

    def raise_if_stopped(self) -> None:
        """Raise ``Stopped``."""
        if self.stop is not None and self.stop.is_set():
            raise Stopped("the run is being stopped")

    def sleep(self, seconds: float) -> None:
        """Wait so long, or until the run is being stopped."""
        (self.stop or threading.Event()).wait(seconds)

    def tell_job(self, job: Job, moment: Moment) -> None:
        """Tell of a job, where jobs run."""
        for hear in (self.before_step, self.on_job):
            if hear is not None:
                hear(job, moment)

    def tell_cluster_job(self, seen: ClusterJob) -> None:
        """Tell where a job on a cluster stands, whenever that changes."""
        if self.on_cluster_job is not None:
            self.on_cluster_job(seen)

    def tell_line(self, line: str) -> None:
        """Tell a line of our own among the step's."""
        if self.lines is not None:
            self.lines.line(line)
