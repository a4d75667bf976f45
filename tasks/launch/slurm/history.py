"""The starts of a step so far, over all its jobs: why each ended and what it went on from. Kept when their records go."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from dpo_core.contract.errors import StoreError
from dpo_core.contract.regular_file import read_regular
from tasks.launch.cluster_job import JobStart
from tasks.launch.slurm.ends import why_a_start_ended
from tasks.launch.slurm.record import Start, starts_of

HISTORY_FILE = "history.json"
LARGEST_BYTES = 1 << 20
MOST_STARTS = 100  # the newest


def starts_so_far(record: Path, keys: Sequence[str], now: float) -> tuple[JobStart, ...]:
    """Return all starts of the step in their order: those of earlier jobs, then those of the job, or the jobs, ``keys``."""
    beginnings = tuple(f"{key}." for key in keys)
    own = [row for key in keys for row in _rows(starts_of(record, key), now)]
    earlier = [start for name, start in _read(record) if not name.startswith(beginnings)]
    return (*earlier, *sorted(own, key=lambda row: row.began))


def remember(record: Path, now: float) -> None:
    """Write down the starts whose records are about to be removed."""
    known = dict(_read(record))
    places = (place for pattern in ("*.*", "share-*/*.*") for place in record.glob(pattern))
    keys = sorted(
        {
            str(place.relative_to(record).with_suffix(""))
            for place in places
            if place.suffix[1:].isdigit() and place.is_dir()
        }
    )
    for key in keys:
        starts = starts_of(record, key)
        for start, row in zip(starts, _rows(starts, now, is_over=True), strict=True):
            known[f"{key}.{start.number}"] = row
    ordered = sorted(known.items(), key=lambda item: item[1].began)[-MOST_STARTS:]
    aside = record / f"{HISTORY_FILE}.aside"
    with contextlib.suppress(OSError):  # for looking at: it stops no step
        aside.write_text(json.dumps([[name, _fields(start)] for name, start in ordered]))
        aside.replace(record / HISTORY_FILE)


def _rows(starts: Sequence[Start], now: float, is_over: bool = False) -> tuple[JobStart, ...]:
    return tuple(
        JobStart(
            start.job_id,
            start.nodes,
            start.began,
            round(start.seconds(now), 1),
            start.from_step,
            why_a_start_ended(start, is_followed=number < len(starts), is_over=is_over),
        )
        for number, start in enumerate(starts, 1)
    )


def _fields(start: JobStart) -> dict[str, object]:
    return {name: getattr(start, name) for name in JobStart.__slots__}


def _read(record: Path) -> list[tuple[str, JobStart]]:
    with contextlib.suppress(OSError, StoreError, ValueError, TypeError):
        written = json.loads(read_regular(record / HISTORY_FILE, LARGEST_BYTES))
        return [(str(name), JobStart(**fields)) for name, fields in written]
    return []
