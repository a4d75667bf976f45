"""What in a store nobody needs any more, and its removal.

Only in a folder with a store's marker, and there only what has a name of ours and is no link (``tasks/run/store_root.py``).
An entry is a folder <store>/<step>/<id>: a step's result, or a snapshot. It goes if it is older than the age and no kept run
leads to it. A run is kept while its process lives, while it is younger than the age, and while it is among the newest of
its name that completed. What a kept run leads to: the results its record names, and every path below the store that the
job.json and result.json of those name, and so on.

A step at work holds its folder's lock, and a reused result is touched, so that neither is removed under a run that is just
about to record it. Runs (small), published checkpoints and hand-offs stay for ever.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_core.contract.bounded_json import bounded_json
from dpo_core.contract.errors import PairlineError, StoreError
from dpo_core.contract.job import JOB_FILE
from dpo_core.contract.job_registry import JOBS
from dpo_core.contract.regular_file import everything_below, is_plain_file, read_regular
from dpo_core.contract.results import LARGEST_RESULT_BYTES, RESULT_FILE
from dpo_core.contract.store import ASIDE, LOCK_FILE, exclusive, wait_for_lock
from tasks.launch.own_folder import earlier_lock, own_folder
from tasks.run.folder import RunRecord, is_alive, read_runs
from tasks.run.store_root import entries_below, marked_store

SECONDS_PER_DAY, GIB = 86_400.0, 1 << 30
COLLECTED = (*JOBS, "checkpoints", "intake")  # everything else in a store is a record, a product or a cache


@dataclass(frozen=True, slots=True)
class Entry:
    """A folder that nobody needs."""

    path: Path
    num_bytes: int
    age_days: float


@dataclass(frozen=True, slots=True)
class Collection:
    """What a collection found. ``removed`` is empty after a dry run; ``kept`` counts entries that stay."""

    garbage: tuple[Entry, ...]
    kept: int
    removed: tuple[Path, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes that removing the garbage frees; a file that stands elsewhere, too (a link), frees nothing."""
        return sum(entry.num_bytes for entry in self.garbage)


def collect(
    store_root: Path,
    older_than_days: float,
    keep_per_name: int = 1,
    dry_run: bool = True,
    now: float | None = None,
) -> Collection:
    """Find the garbage, and remove it unless ``dry_run``. Raises ``ConfigError`` if the folder is no store."""
    store = marked_store(store_root)
    now = time.time() if now is None else now
    oldest = now - older_than_days * SECONDS_PER_DAY
    entries = list(store_entries(store))
    needed = reachable(store, kept_runs(read_runs(store), oldest, keep_per_name), entries)
    garbage = tuple(
        Entry(entry, size_of(entry), (now - last_used(entry)) / SECONDS_PER_DAY)
        for entry in entries
        if entry not in needed and last_used(entry) < oldest
    )
    removed = () if dry_run else tuple(entry.path for entry in garbage if remove(entry.path, oldest))
    return Collection(garbage, len(entries) - len(garbage), removed)


def kept_runs(runs: list[tuple[Path, RunRecord]], oldest: float, keep_per_name: int) -> list[RunRecord]:
    """Return the runs whose results stay. ``runs``: oldest first; ``oldest``: seconds since the epoch."""
    kept, completed = [], dict[str, int]()
    for _, record in reversed(runs):
        newest = False
        if record.state == "completed":
            completed[record.name] = completed.get(record.name, 0) + 1
            newest = completed[record.name] <= keep_per_name
        alive = record.state == "suspended" or (record.state == "running" and is_alive(record))
        if newest or alive or record.started.timestamp() >= oldest:
            kept.append(record)
    return kept


def store_entries(store: Path) -> Iterator[Path]:
    """Return every folder that may be garbage."""
    return (path for step in COLLECTED for path in entries_below(store, step))


def reachable(store: Path, runs: list[RunRecord], entries: list[Path]) -> set[Path]:
    """Return entries that a kept run, or a step at work, leads to."""
    known = set(entries)
    waiting = [
        entry
        for record in runs
        for text in record.outputs.values()
        if (entry := entry_of(store, text)) in known
    ]
    waiting += [entry for entry in entries if is_locked(entry)]
    found: set[Path] = set()
    while waiting:
        entry = waiting.pop()
        if entry not in found:
            found.add(entry)
            waiting += [other for other in named_in(store, entry) if other in known]
    return found


def named_in(store: Path, entry: Path) -> Iterator[Path]:
    """Yield entries whose paths stand in the job and the result of ``entry``."""
    for name in (JOB_FILE, RESULT_FILE):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            for text in texts_in(bounded_json(read_regular(entry / name, LARGEST_RESULT_BYTES))):
                if other := entry_of(store, text):
                    yield other


def texts_in(value: Any) -> Iterator[str]:
    """Yield every string in a JSON value."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts_in(inner)


def entry_of(store: Path, text: str) -> Path | None:
    """Return the entry that a path below the store lies in, or None."""
    if not text.startswith(f"{store}{os.sep}"):
        return None
    parts = Path(text).relative_to(store).parts
    return store / parts[0] / parts[1] if len(parts) > 1 else None


@contextlib.contextmanager
def held(entry: Path) -> Iterator[None]:
    """Hold the folder against steps and the runs that start them; makes no file that is not there. Raises ``StoreBusy``, and
    ``StoreError`` where a link leads to what would be held and removed."""
    own = own_folder(entry)
    if own.is_symlink() or own.parent.is_symlink():
        raise StoreError(f"{own} is reached by a link, where the run's own files belong. Remove the link.")
    with contextlib.ExitStack() as stack:
        if (lock := earlier_lock(entry)) is not None:
            wait_for_lock(stack.enter_context(lock), entry, wait_seconds=0)
        for folder in (own, entry):
            if is_plain_file(folder / LOCK_FILE):
                stack.enter_context(exclusive(folder))
        yield


def is_locked(entry: Path) -> bool:
    """Return whether somebody is at work in the folder."""
    try:
        with held(entry):
            return False
    except PairlineError:  # in use, or its lock is a trap of a step's making: left for a person to look at
        return True


def last_used(entry: Path) -> float:
    """Return seconds since the epoch of the newest change to the folder or a file in it; reusing a result touches its
    folder.
    """
    times = [entry.stat().st_mtime]
    with contextlib.suppress(OSError):
        for path in everything_below(entry):
            if path.name != LOCK_FILE:
                with contextlib.suppress(OSError):
                    times.append(path.lstat().st_mtime)
    return max(times)


def size_of(entry: Path) -> int:
    """Return bytes that removing the folder frees."""
    sizes = []
    for folder in (entry, own_folder(entry)):
        with contextlib.suppress(OSError):
            for path in everything_below(folder):
                with contextlib.suppress(OSError):
                    stat = path.lstat()
                    sizes.append(stat.st_size if stat.st_nlink == 1 else 0)
    return sum(sizes)


def remove(entry: Path, oldest: float) -> bool:
    """Remove an entry unless somebody works in it or has used it since it was found. -> whether it is gone

    It is renamed first, under its lock: a run that looks at the same moment finds all of it or nothing.
    """
    aside, own = entry.with_name(f".{entry.name}.garbage{ASIDE}"), own_folder(entry)
    own_aside = own.with_name(f".{own.name}.garbage{ASIDE}")
    try:
        with held(entry):
            if last_used(entry) >= oldest:
                return False
            entry.rename(aside)
            with contextlib.suppress(FileNotFoundError):
                own.rename(own_aside)
    except (PairlineError, OSError):
        return False
    for removed in (aside, own_aside):
        with contextlib.suppress(
            RecursionError
        ):  # folders that a step nested a thousand deep; they stay, renamed
            shutil.rmtree(removed, ignore_errors=True)  # follows no link, wherever one stands
    return True


def in_words(found: Collection, dry_run: bool) -> str:
    """Say in one sentence what came of a collection."""
    if dry_run:
        return (
            f"{len(found.garbage)} entries of {found.num_bytes / GIB:.2f} GiB would be removed, {found.kept} stay. "
            "Nothing was touched."
        )
    freed = sum(entry.num_bytes for entry in found.garbage if entry.path in found.removed)
    return f"{len(found.removed)} entries removed, {freed / GIB:.2f} GiB ({freed} bytes) freed, {found.kept} stay."
