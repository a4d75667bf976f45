"""Makes a step's folders usable by the user that its container runs as, and its inputs complete and readable."""

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from dpo_core.errors import StoreError, from_os_error


def hand_over(folders: Iterable[Path], user: tuple[int, int]) -> None:
    """Make folders, and give them with all that is in them to ``user`` if we are root; else they are the user's already.

    Root keeps the right to read and delete them. Raises ``StoreError``.
    """
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            for path in _everything_in(folder) if os.geteuid() == 0 else ():
                with contextlib.suppress(FileNotFoundError):  # a neighbour's file, written aside, is in its place by now
                    if path.lstat().st_uid != user[0]:
                        os.lchown(path, *user)
    except OSError as error:
        raise from_os_error(error, "handing the step's folders to its user") from error


def _everything_in(folder: Path) -> Iterator[Path]:
    """The folder and all below it; what vanishes meanwhile is passed over."""
    yield folder
    for place, folders, files in os.walk(folder):
        yield from (Path(place, name) for name in (*folders, *files))


def with_link_targets(inputs: Iterable[Path]) -> tuple[Path, ...]:
    """The inputs and the files outside of them that links inside point to, as in the Hub's cache."""
    found: dict[Path, None] = {}
    for path in inputs:
        found[path] = None
        for link in (p for p in _files(path) if p.is_symlink()):
            if path not in (target := link.resolve()).parents:
                found[target] = None
    return tuple(found)


def check_readable(inputs: Iterable[Path], user: tuple[int, int]) -> None:
    """Raise ``StoreError`` for the first input that is not there or that ``user`` may not read."""
    for path in inputs:
        if not path.exists():
            raise StoreError(f"{path} is an input of the step and does not exist.")
        for file in (path, *_files(path)):
            if not _may_read(file, user):
                raise StoreError(f"{file} cannot be read by the user {user[0]}, as whom the step runs in its container. "
                                 f"Allow it (chmod o+r), or start the run as the file's owner.")


def _files(path: Path) -> Iterator[Path]:
    return (p for p in path.rglob("*") if p.is_file()) if path.is_dir() else iter(())


def _may_read(path: Path, user: tuple[int, int]) -> bool:
    about = path.stat()
    needed = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(about.st_mode) else 0)
    if about.st_uid == user[0]:
        needed <<= 6
    elif about.st_gid == user[1]:
        needed <<= 3
    return about.st_mode & needed == needed
