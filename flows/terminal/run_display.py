"""What a person sees while a run goes on: a bar with its rate per step on a terminal, plain lines elsewhere."""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dpo_core.contract.progress import ProgressEvent
from dpo_core.contract.visible import one_line
from tasks.launch.cluster_job import ClusterJob
from tasks.run.folder import TaskRecord
from tasks.text.terminal import tell

SECONDS_BETWEEN_LINES = 10.0
SHOWN_METRICS = ("loss", "rewards/accuracies")
DATA_TASKS = ("mix data", "mix sets")


class RunDisplay(Protocol):
    """Told of tasks and their progress. ``folder`` is the run's own, known from the first task on."""

    folder: Path | None

    def task(self, folder: Path, record: TaskRecord) -> None: ...

    def progress(self, event: ProgressEvent) -> None: ...

    def held(self) -> AbstractContextManager[None]:
        """Draw nothing inside the ``with`` block, where a person is asked something."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class TaskNotices(logging.Handler):
    """Tells on the terminal what is only logged else: that a task failed and is tried again, what is odd about the data,
    what is waited for. Signs of a policy that gets worse are told by the verdict that ends the run."""

    HEARD = ("prefect.task_runs", "tasks", "flows")  # loggers

    RETRY = re.compile(
        r"exception: (?P<error>\w+).*Retry (?P<which>\d+/\d+) will start (?P<when>.*)$", re.DOTALL
    )

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a retry in one line, warnings whole; everything else is in the run's log."""
        text = record.getMessage()
        if retry := self.RETRY.search(text):
            line = f"  failed ({retry['error']}), retry {retry['which']} starts {retry['when']}"
            tell(self.console, one_line(line), is_cut=True)
        elif record.levelno < logging.WARNING:
            return
        elif record.name != self.HEARD[0]:
            tell(self.console, f"  {one_line(text)}")
        elif getattr(record, "task_name", None) in DATA_TASKS:
            tell(self.console, f"Warning: {one_line(text)}")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Tell what is logged within the ``with`` block."""
        for name in self.HEARD:
            logging.getLogger(name).addHandler(self)
        try:
            yield
        finally:
            for name in self.HEARD:
                logging.getLogger(name).removeHandler(self)


class ClusterNotices:
    """Tells on the terminal where a step's job on a cluster stands, a line whenever that changes: it may wait for hours."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._told: dict[str, str] = {}  # a job's name -> the last line

    def __call__(self, job: ClusterJob) -> None:
        expected = f", expected to start {job.expected}" if job.expected else ""
        if self._told.get(job.name) != (line := f"  {job.in_words}{expected}"):
            self._told[job.name] = line
            tell(self.console, one_line(line), is_cut=True)


def run_display(console: Console) -> RunDisplay:
    """Return bars for a terminal, lines for a pipe or a file."""
    return BarDisplay(console) if console.is_terminal else LineDisplay(console)


def progress_text(event: ProgressEvent) -> str:
    """Return "train 12/90 steps, 3.1 steps/s, loss 0.68" """
    parts = [f"{event.done:,}/{event.total:,} {event.unit}"]
    if event.rate:
        parts.append(
            f"{event.rate:,.2f} {event.unit}/s" if event.rate < 10 else f"{event.rate:,.0f} {event.unit}/s"
        )
    parts += [
        f"{name.rsplit('/', 1)[-1]} {event.metrics[name]:.4g}"
        for name in SHOWN_METRICS
        if name in event.metrics
    ]
    return one_line(", ".join(parts))


class LineDisplay:
    """One line when a task starts and ends, and at most one in ten seconds between."""

    def __init__(self, console: Console) -> None:
        self.console, self._last_line = console, 0.0
        self.folder: Path | None = None

    def task(self, folder: Path, record: TaskRecord) -> None:
        self.folder, self._last_line = folder, time.monotonic()
        ended = "" if record.seconds is None else f" in {record.seconds:.1f} s"
        tell(self.console, one_line(f"{record.name}: {record.state}{ended}"), is_cut=True)

    def progress(self, event: ProgressEvent) -> None:
        if time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            phase = f" ({event.phase})" if event.phase not in ("", event.step) else ""
            tell(self.console, one_line(f"  {event.step}{phase}: {progress_text(event)}"), is_cut=True)

    def held(self) -> AbstractContextManager[None]:
        return nullcontext()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class BarDisplay:
    """A bar per task; one that reports no progress pulses."""

    def __init__(self, console: Console) -> None:
        self.folder: Path | None = None
        self._bars = Progress(
            TextColumn("{task.description:<18}", markup=False),
            BarColumn(bar_width=30),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
        )
        self._current: TaskID | None = None

    def task(self, folder: Path, record: TaskRecord) -> None:
        self.folder = folder
        if record.state == "running":
            self._current = self._bars.add_task(one_line(record.name), total=None, text="")
        elif self._current is not None:
            text = f"{record.state} in {record.seconds:.1f} s"
            full = 1 if record.state == "completed" else None  # None leaves a bar as it is
            self._bars.update(self._current, text=text, total=full, completed=full)
            self._bars.stop_task(self._current)

    def progress(self, event: ProgressEvent) -> None:
        if self._current is not None:
            self._bars.update(
                self._current,
                total=event.total or None,
                completed=event.done,
                text=one_line(f"{event.phase} {progress_text(event)}".strip()),
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        self._bars.stop()
        try:
            yield
        finally:
            self._bars.start()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
