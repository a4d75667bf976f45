"""Progress of a step: one JSON object per line on stdout, so that any launcher can show it.

A line is ``{"pairline": "progress", "step": "train", "done": 12, "total": 90, "unit": "pairs", "rate": 3.1,
"metrics": {...}}``. Everything else a step prints is log.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from dpo_core.contract.quantities import Stored

MARK = "pairline"
Name = Annotated[str, Field(max_length=200)]


class ProgressEvent(BaseModel):
    """Where a step stands. ``rate`` is in units per second since the step began its work; ``metrics`` are plain numbers."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: Name
    done: Stored
    total: Stored
    unit: Name
    rate: float = 0.0
    phase: Name = ""
    metrics: dict[Name, float] = {}


def print_event(event: ProgressEvent) -> None:
    """Print the event, as the default sink: one line on stdout."""
    sys.stdout.write(json.dumps({MARK: "progress", **event.model_dump()}) + "\n")
    sys.stdout.flush()


def carries_event(line: str) -> bool:
    """Return whether a line of a step's stdout is meant as progress, and not as log."""
    return line.startswith('{"' + MARK + '"')


def parse_line(line: str) -> ProgressEvent | None:
    """Return the event that a line of a step's stdout carries, or None for a line of log."""
    if not carries_event(line):
        return None
    try:
        return ProgressEvent.model_validate_json(line)
    except ValueError:
        return None


class Progress:
    """Counts the work of one step and reports at most every ``interval_seconds``, and always at the end.

    ``active=False`` (ranks other than 0) makes every call a no-op.
    """

    def __init__(
        self,
        step: str,
        active: bool = True,
        interval_seconds: float = 1.0,
        sink: Callable[[ProgressEvent], None] = print_event,
    ) -> None:
        self.step, self.active, self.interval_seconds, self.sink = step, active, interval_seconds, sink
        self.begin(phase="", total=0, unit="")

    def begin(self, phase: str, total: int, unit: str, done: int = 0) -> None:
        """Start a phase of ``total`` units, ``done`` of which an earlier attempt already did."""
        self.phase, self.total, self.unit, self.done = phase, total, unit, done
        self._started, self._done_at_start, self._reported = time.monotonic(), done, 0.0

    def advance(self, units: int = 1, metrics: dict[str, float] | None = None) -> None:
        """Count ``units`` more as done."""
        self.done += units
        now = time.monotonic()
        if self.active and (self.done >= self.total or now - self._reported >= self.interval_seconds):
            self._reported = now
            self.sink(
                ProgressEvent(
                    step=self.step,
                    done=self.done,
                    total=self.total,
                    unit=self.unit,
                    phase=self.phase,
                    rate=self.rate(),
                    metrics=metrics or {},
                )
            )

    def rate(self) -> float:
        """Return units per second since the phase began."""
        return (self.done - self._done_at_start) / max(time.monotonic() - self._started, 1e-9)
