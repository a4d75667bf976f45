"""``metrics.jsonl``, a line a step, in as much room as a page can show, however many steps there are.

Totals count every step. Rows stand for one step each, or in a long run for the mean of as many in a row.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from dpo_core.contract.metrics_file import Metrics, parse_step
from tasks.run.followed import FollowedFile

MOST_ROWS = 2048  # then two become one; a curve has 240 points
MOST_NAMES = 4096
TOKENS = "tokens"  # of a step's batch, prompts counted with both answers
PEAK = "memory/peak_gib"


@dataclass(slots=True)
class _Piece:
    """Steps in a row: sums of what is finite, and of how many steps each is one."""

    steps: int
    sums: dict[str, float]
    counts: dict[str, int]

    @classmethod
    def of(cls, row: dict[str, float]) -> "_Piece":
        finite = {name: math.isfinite(value) for name, value in row.items()}
        return cls(1, {name: value if finite[name] else 0.0 for name, value in row.items()}, dict(finite))

    def add(self, later: "_Piece") -> None:
        for name, value in later.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + later.counts[name]
        self.steps += later.steps

    @property
    def mean(self) -> dict[str, float]:
        return {
            name: value / self.counts[name] if self.counts[name] else math.nan
            for name, value in self.sums.items()
        }


class StepMetrics:
    """``count``: of steps. ``last``: the newest. ``peak_gib``: the most memory of any."""

    def __init__(self) -> None:
        self.count = 0
        self.last: dict[str, float] = {}
        self.peak_gib = math.nan
        self._pieces: list[_Piece] = []
        self._ends: list[float] = []  # the last step of each piece
        self._each = 1  # so many steps are a piece, the last one may have fewer
        self._names: set[str] = set()

    def take(self, step: dict[str, float]) -> None:
        """Take the next step."""
        self.count, self.last = self.count + 1, step
        if PEAK in step and not self.peak_gib > step[PEAK]:
            self.peak_gib = step[PEAK]
        piece = _Piece.of(self._known(step) | _tokens(step))
        if self._pieces and self._pieces[-1].steps < self._each:
            self._pieces[-1].add(piece)
            self._ends[-1] = step["step"]
            return
        if len(self._pieces) == MOST_ROWS:
            self._halve()
        self._pieces.append(piece)
        self._ends.append(step["step"])

    @property
    def rows(self) -> Metrics:
        """Return means of equally many steps in a row, each at the last of them; of few steps, each."""
        return [piece.mean | {"step": end} for piece, end in zip(self._pieces, self._ends, strict=True)]

    def total(self, name: str) -> float:
        """Return the sum over all steps; 0 of what no step has."""
        return sum(piece.sums.get(name, 0.0) for piece in self._pieces)

    def _known(self, step: dict[str, float]) -> dict[str, float]:
        """Without names beyond the first few thousand, which no training of ours has."""
        if not step.keys() <= self._names:
            self._names |= set(list(step.keys() - self._names)[: MOST_NAMES - len(self._names)])
        return (
            step if step.keys() <= self._names else {name: step[name] for name in step.keys() & self._names}
        )

    def _halve(self) -> None:
        for first, second in zip(self._pieces[::2], self._pieces[1::2], strict=True):
            first.add(second)
        self._pieces, self._ends = self._pieces[::2], self._ends[1::2]
        self._each *= 2


class FollowedSteps(FollowedFile):
    """A ``metrics.jsonl`` that grows. From the first line on that is not one of its own nothing is read."""

    def forget(self) -> None:
        """Forget the steps: a training that goes on from a checkpoint has written those before it anew."""
        self.metrics, self._is_over = StepMetrics(), False

    def take(self, line: bytes, changed: float) -> None:
        """Take a step."""
        step = None if self._is_over else parse_step(line)
        if step is None:
            self._is_over = True
        else:
            self.metrics.take(step)


def read_steps(path: Path) -> StepMetrics:
    """Return what a ``metrics.jsonl`` holds; nothing where it is not there."""
    steps = FollowedSteps(path)
    steps.look()
    return steps.metrics


def _tokens(step: dict[str, float]) -> dict[str, float]:
    if not {"tokens_per_second", "step_seconds"} <= step.keys():
        return {}
    return {TOKENS: step["tokens_per_second"] * step["step_seconds"]}
