"""Whether what a step says of its files may be believed. Its result is data: a step may have written anything.

Every path in it lies in the job's folder (or in the cache that the job names), with links resolved. Where a result carries
hashes, it has some, the files have those contents, and nothing there is a link or anything else but files and folders. So
what a later step is given to read, what is mounted, uploaded or shown is what a step wrote itself.
"""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dpo_core.contract.errors import StoreError, from_os_error
from dpo_core.contract.jobs import Job
from dpo_core.contract.regular_file import everything_below
from dpo_core.contract.results import Result
from dpo_core.contract.store import verify_files


def check_result(result: Result, job: Job) -> None:
    """Raise ``StoreError`` for the first thing that cannot be believed, is missing, or damaged."""
    places = [Path(place).resolve() for place in (job.out_dir, getattr(job, "cache_dir", job.out_dir))]
    try:
        for path in paths_in(result):
            _check_place(path, places)
        for folder, files in _hashed(result):
            if not files:
                raise StoreError(f"No hash of {folder} stands in the result.",
                                 f"Delete {job.out_dir} to have it made again.")
            _check_plain(folder, files, whole=folder.resolve() != places[0])
            verify_files(folder, files)
    except OSError as error:
        raise from_os_error(error, f"reading the result of {job.step}") from error


def in_this_store(value: Any, folder: Path) -> Any:
    """A result of the job in ``folder`` with its paths there, as a store may have been copied or moved since. The names of
    step and job, which are the same everywhere, tell which part of a path that is."""
    if isinstance(value, Path):
        parts, own = value.parts, folder.parts[-2:]
        start = next((i for i in range(len(parts) - 1) if parts[i:i + 2] == own), None)
        return value if start is None else folder.joinpath(*parts[start + 2:])
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return value.model_copy(update={name: in_this_store(getattr(value, name), folder) for name in fields})
    if isinstance(value, dict):
        return {name: in_this_store(inner, folder) for name, inner in value.items()}
    return type(value)(in_this_store(inner, folder) for inner in value) if isinstance(value, list | tuple) else value


def paths_in(value: object) -> Iterator[Path]:
    """Every path in a value of the contract, however deep."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from paths_in(getattr(value, name))
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from paths_in(inner)


def _check_place(path: Path, places: list[Path]) -> None:
    try:
        real = path.resolve()
        inside = path.is_absolute() and any(real.is_relative_to(place) for place in places)
    except (ValueError, RuntimeError) as error:  # a zero byte; links in a circle
        raise StoreError(f"The result names {str(path)[:200]!r}, which is no path.") from error
    if not inside:
        raise StoreError(f"The result names {path}, which is not in {places[0]}, where the step's files belong. It is not "
                         "used.", f"Delete {places[0]} to have the step run again.")
    if not path.exists():
        raise StoreError(f"{path} is missing.")


def _hashed(result: Result) -> Iterator[tuple[Path, dict[str, str]]]:
    """Each folder with the sha256 of its files, as far as the contract has them."""
    if hasattr(result, "weights_path"):
        yield result.weights_path, getattr(result, "weights_sha256", {})
    for value in (result, *(getattr(result, name) for name in type(result).model_fields)):
        if hasattr(value, "path") and hasattr(value, "files"):
            yield value.path, value.files


def _check_plain(folder: Path, files: dict[str, str], whole: bool) -> None:
    """Of the job's own folder, where the contract's files lie, too, only what is named is looked at (not ``whole``)."""
    if whole:
        found = list(everything_below(folder))
    else:
        real = folder.resolve()
        found = [real / name for name in files]
        if linked := next((path for path in found if path.resolve() != path), None):
            raise StoreError(f"{linked} is reached by a link. A step makes none.",
                             f"Delete {folder} to have it made again.")
    for path in found:
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise StoreError(f"{path} is neither a file nor a folder. A step makes no links, and nothing else.",
                             f"Delete {folder} to have it made again.")
