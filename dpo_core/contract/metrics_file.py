"""``metrics.jsonl``: one JSON object an optimizer step, which training writes and the report reads. ``evaluations.jsonl``:
the same of the held-out pairs, one object an evaluation."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from dpo_core.contract.errors import StoreError
from dpo_core.contract.regular_file import open_regular

METRICS_FILE, EVALUATIONS_FILE = "metrics.jsonl", "evaluations.jsonl"
Metrics = list[dict[str, float]]
LARGEST_METRICS_BYTES = 64 << 20  # a hundred thousand steps
LARGEST_NUMBER = 1 << 63


def read_metrics(path: Path) -> Metrics:
    """Return the steps of a ``metrics.jsonl``, oldest first; none if it is not there. From the first line on that is
    not one (cut off, or not of our writing) nothing is read, nor what comes after ``LARGEST_METRICS_BYTES``."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            lines = file.read(LARGEST_METRICS_BYTES).decode(errors="replace").splitlines()
    except (OSError, StoreError):
        return []
    steps = []
    for line in lines:
        if (step := parse_step(line)) is None:
            break
        steps.append(step)
    return steps


def each_step(path: Path) -> Iterator[dict[str, float]]:
    """Yield the steps of one's own ``metrics.jsonl``, of any length, oldest first; none if it is not there. Ends where a
    line is not one."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            if (step := parse_step(line)) is None:
                return
            yield step


def parse_step(line: str | bytes) -> dict[str, float] | None:
    """Return the numbers of a line; None of one that is not of our writing."""
    try:
        step = {name: value for name, value in json.loads(line).items() if _is_number(value)}
    except (ValueError, RecursionError, AttributeError):
        return None
    return step if "step" in step else None


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < LARGEST_NUMBER)
