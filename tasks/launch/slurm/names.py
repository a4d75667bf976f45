"""What an array's jobs are called: in the queue ``48_3``, in the record ``share-3-of-8/<key>-3``."""

import re
from pathlib import Path

SHARE_KEY = re.compile(r"share-([0-9]+)-of-([0-9]+)/")


def share_folder(record: Path, index: int | str, count: int | str) -> Path:
    """Return the record of one share's starts, of all submissions. With another count its rows would be others."""
    return record / f"share-{index}-of-{count}"


def share_key(key: str, index: int | str, count: int) -> str:
    """Return what a share's starts are called in the record of the step."""
    return f"share-{index}-of-{count}/{key}-{index}"


def array_of(job_id: str) -> str:
    """Return the id of the whole array for one of its jobs, a job's own for any other."""
    return job_id.partition("_")[0]


def index_of(job_id: str) -> int | None:
    """Return which job of its array it is; None for one of no array, or several of one."""
    index = job_id.partition("_")[2]
    return int(index) if index.isascii() and index.isdigit() else None


def share_of(key: str) -> tuple[int, int] | None:
    """Return which share a key is of and of how many, None for a key of a job of its own: that may be digits alone."""
    found = SHARE_KEY.match(key)
    return (int(found[1]), int(found[2])) if found else None
