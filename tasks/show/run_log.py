"""A step's log in Prefect's own, live and thinned out: every line costs the database a row. ``log.txt`` has them all."""

import contextlib
import logging
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from prefect import get_run_logger
from prefect.exceptions import MissingContextError

from dpo_core.contract.progress import ProgressEvent
from dpo_core.contract.visible import one_line, visible

SECONDS_BETWEEN_LINES, SECONDS_BETWEEN_PROGRESS = 1.0, 10.0
NUM_LAST_LINES = 10


def make_logs_visible() -> None:
    """Let nothing in this process's log records, from now on, steer who shows them, tracebacks included: Prefect's
    command line and pages, a worker's terminal. For good: what a flow raises is logged after its end."""
    make = logging.getLogRecordFactory()
    if getattr(make, "makes_visible", False):
        return

    def visible_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        with contextlib.suppress(
            Exception
        ):  # a message that does not fit its arguments is the handlers' to report
            if (text := visible(said := record.getMessage())) != said:
                record.msg, record.args = text, ()
        if record.exc_info and record.exc_info[0] is not None:
            trace = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            if (text := visible(trace)) != trace:
                record.exc_text = text  # what a formatter takes instead of making its own
        return record

    visible_record.makes_visible = True  # type: ignore[attr-defined]  # any function takes attributes
    logging.setLogRecordFactory(visible_record)


def to_run_logger(line: str) -> None:
    """Log under the task that is running."""
    with contextlib.suppress(MissingContextError):
        get_run_logger().info("| %s", one_line(line))


class ThinnedLines:
    """Passes on a line a second at most, a step's last ones, and every ten seconds where it stands. Implements
    ``LineListener``."""

    _next: float
    _next_progress: float
    _num_dropped: int

    def __init__(
        self, emit: Callable[[str], None] = to_run_logger, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._emit, self._clock = emit, clock
        self._held: deque[str] = deque(maxlen=NUM_LAST_LINES)
        self._begin()

    def line(self, line: str) -> None:
        if not line.strip():
            return
        if self._clock() >= self._next:
            self._next = self._clock() + SECONDS_BETWEEN_LINES
            self._num_dropped += len(self._held)
            self._held.clear()
            self._emit(line)
            return
        self._num_dropped += len(self._held) == NUM_LAST_LINES
        self._held.append(line)

    def progress(self, event: ProgressEvent) -> None:
        if self._clock() >= self._next_progress:
            self._next_progress = self._clock() + SECONDS_BETWEEN_PROGRESS
            phase = f" ({event.phase})" if event.phase not in ("", event.step) else ""
            self._emit(
                f"{event.step}{phase}: {event.done:,}/{event.total:,} {event.unit}, {event.rate:.3g} {event.unit}/s"
            )

    def end(self) -> None:
        for line in self._held:
            self._emit(line)
        if self._num_dropped:
            self._emit(f"({self._num_dropped} lines more in the step's log.txt)")
        self._held.clear()
        self._begin()

    def _begin(self) -> None:
        self._next, self._next_progress, self._num_dropped = 0.0, 0.0, 0
