"""Makes a step's folders usable by the user that its container runs as, and its inputs complete and readable."""

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from dpo_core.contract.errors import StoreError, from_os_error

STORE_MARKER = ".pairline-store"  # in a folder that is a store


def hand_over(folders: Iterable[Path], user: tuple[int, int]) -> None:
    """Make folders, and give them with all that is in them to ``user`` if we are root; else they are the user's already.

    Root keeps the right to read and delete them. What vanishes meanwhile is passed over. Other steps may be at work in a
    folder that is shared (a cache), so every name is looked up in an open folder: what they replace by a link is not
    followed. Raises ``StoreError``.
    """
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            for _, names, files, place in os.fwalk(folder.resolve()) if os.geteuid() == 0 else ():
                for name in (".", *names, *files):
                    _give(name, place, user)
    except RecursionError as error:
        raise StoreError(f"Folders are nested too deep in {folder}. Remove it, then start again.") from error
    except OSError as error:
        raise from_os_error(error, "handing the step's folders to its user") from error


def _give(name: str, place: int, user: tuple[int, int]) -> None:
    with contextlib.suppress(FileNotFoundError):  # a neighbour's file, written aside, is in its place by now
        if os.stat(name, dir_fd=place, follow_symlinks=False).st_uid != user[0]:
            os.chown(name, *user, dir_fd=place, follow_symlinks=False)


def let_read(inputs: Iterable[Path], user: tuple[int, int]) -> None:
    """Allow, where root's umask hides files of its own store from ``user``, the user's group to read them.

    What lies outside of a store, is another user's, or has another name, too, is not ours to change. Raises ``StoreError``.
    """
    if os.geteuid() != 0:
        return
    try:
        for path in (p for p in inputs if any((folder / STORE_MARKER).is_file() for folder in p.parents)):
            for file in (path, *path.rglob("*")):
                about = file.lstat()
                is_ours = about.st_uid == 0 and not stat.S_ISLNK(about.st_mode)
                if is_ours and not _may_read(file, user) and (file.is_dir() or about.st_nlink == 1):
                    os.chown(file, -1, user[1], follow_symlinks=False)
                    file.chmod(about.st_mode | stat.S_IRGRP | (stat.S_IXGRP if file.is_dir() else 0))
    except OSError as error:
        raise from_os_error(error, "letting the step's user read its inputs") from error


def with_link_targets(inputs: Iterable[Path], named_by_people: Iterable[Path]) -> tuple[Path, ...]:
    """Return the inputs, and the files outside of them that links inside point to, as in the Hub's cache.

    Only for what a person's configuration names: a link in what a step left says where a step wants to read.
    """
    found = dict.fromkeys(inputs)
    for path in named_by_people:
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
                raise StoreError(
                    f"{file} cannot be read by the user {user[0]}, as whom the step runs in its container. "
                    f"Allow it (chmod o+r), or start the run as the file's owner."
                )


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
