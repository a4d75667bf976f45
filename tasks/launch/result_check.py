"""Whether what a step says of its files may be believed. Its result is data: a step may have written anything.

Every path in it lies in the job's folder (or in the cache that the job names), with links resolved. Where a result carries
hashes, it has some, the files have those contents, and nothing there is a link or anything else but files and folders. So
what a later step is given to read, what is mounted, uploaded or shown is what a step wrote itself.
"""

import stat
from pathlib import Path

from dpo_core.contract.errors import StoreError, from_os_error
from dpo_core.contract.job import Job, R, Result
from dpo_core.contract.regular_file import everything_below
from dpo_core.contract.store import verify_files


def check_result(result: Result, job: Job) -> None:
    """Raise ``StoreError`` for the first thing that cannot be believed, is missing, or damaged."""
    places = [Path(place).resolve() for place in (job.out_dir, *job.writes())]
    try:
        for path in result.paths():
            _check_place(path, places)
        for folder, files in result.file_sets():
            if not files:
                raise StoreError(
                    f"No hash of {folder} stands in the result.",
                    f"Delete {job.out_dir} to have it made again.",
                )
            if wrong := next((name for name in files if "\0" in name), None):
                raise StoreError(
                    f"The result names {wrong[:200]!r} in {folder}, which is no name of a file.",
                    f"Delete {job.out_dir} to have it made again.",
                )
            _check_plain(folder, files, whole=folder.resolve() != places[0])
            verify_files(folder, files)
    except OSError as error:
        raise from_os_error(error, f"reading the result of {job.step}") from error


def in_this_store(result: R, folder: Path) -> R:
    """Return a result of the job in ``folder`` with its paths there, as a store may have been copied or moved since.
    The names of step and job, which are the same everywhere, tell which part of a path that is."""
    own = folder.parts[-2:]

    def here(path: Path) -> Path:
        start = next((i for i in range(len(path.parts) - 1) if path.parts[i : i + 2] == own), None)
        return path if start is None else folder.joinpath(*path.parts[start + 2 :])

    return result.with_paths(here)


def _check_place(path: Path, places: list[Path]) -> None:
    try:
        real = path.resolve()
        inside = path.is_absolute() and any(real.is_relative_to(place) for place in places)
    except (ValueError, RuntimeError) as error:  # a zero byte; links in a circle
        raise StoreError(f"The result names {str(path)[:200]!r}, which is no path.") from error
    if not inside:
        raise StoreError(
            f"The result names {path}, which is not in {places[0]}, where the step's files belong. It is not "
            "used.",
            f"Delete {places[0]} to have the step run again.",
        )
    if not path.exists():
        raise StoreError(f"{path} is missing.")


def _check_plain(folder: Path, files: dict[str, str], whole: bool) -> None:
    """Of the job's own folder, where the contract's files lie, too, only what is named is looked at (not ``whole``)."""
    if whole:
        found = list(everything_below(folder))
    else:
        real = folder.resolve()
        found = [real / name for name in files]
        if linked := next((path for path in found if path.resolve() != path), None):
            raise StoreError(
                f"{linked} is reached by a link. A step makes none.",
                f"Delete {folder} to have it made again.",
            )
    for path in found:
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise StoreError(
                f"{path} is neither a file nor a folder. A step makes no links, and nothing else.",
                f"Delete {folder} to have it made again.",
            )
