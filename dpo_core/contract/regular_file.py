"""Opens files in folders that somebody else may write to: what is there is data, and may be a trap.

A link could lead to a file that only the reader may open, a hard link to one that only the writer may change, and a pipe or
a device makes its reader wait for ever. So none of them is opened, nobody is waited for, and no more is read than agreed on.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dpo_core.contract.errors import StoreError

NO_TRAP = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
REFUSED = (
    errno.ELOOP,
    errno.ENXIO,
    errno.EISDIR,
    errno.ENODEV,
)  # link; pipe or socket without a peer; folder; device


class NotRegular(OSError):
    """What was opened is a folder, a pipe, a device or a socket."""


class TooLong(ValueError):
    """A file holds more than was agreed on."""


def opened(path: Path) -> BinaryIO:
    """Return the regular file ``path``, to be read; links are followed, which a person may have made. What was opened
    is what was looked at. Raises ``NotRegular`` and other kinds of ``OSError``."""
    return os.fdopen(_open(path, os.O_RDONLY | NO_TRAP & ~os.O_NOFOLLOW), "rb")


def read_at_most(file: BinaryIO, max_bytes: int) -> bytes:
    """Return what is left in ``file``. Raises ``TooLong``."""
    content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise TooLong(f"is longer than {max_bytes:,} bytes")
    return content


def _open(path: Path, flags: int) -> int:
    handle = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise NotRegular(errno.EINVAL, "it is no regular file", str(path))
    return handle


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Return a descriptor of the file ``path``; ``flags`` as of ``os.open``, where a new file gets the mode that the
    umask leaves.

    The folder's own path may hold links. Raises ``StoreError`` if ``path`` is a link, no regular file, or, opened to
    write, a file that has another name, too; ``OSError`` otherwise.
    """
    try:
        handle = _open(path, flags & ~os.O_TRUNC | NO_TRAP)
    except NotRegular as error:
        raise _refusal(path, "is no regular file") from error
    except OSError as error:
        if error.errno in REFUSED:
            raise _refusal(path, "is a link or no regular file") from error
        raise
    if flags & os.O_ACCMODE != os.O_RDONLY and os.fstat(handle).st_nlink != 1:
        os.close(handle)
        raise _refusal(path, "is a file that has another name, too")
    if flags & os.O_TRUNC:
        os.ftruncate(handle, 0)
    return handle


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file. Raises ``StoreError`` if it is longer, and as ``open_regular`` does."""
    with os.fdopen(open_regular(path), "rb") as file:
        try:
            return read_at_most(file, max_bytes)
        except TooLong as error:
            raise StoreError(f"{path} {error}, which no step of ours writes. Remove it.") from None


def is_plain_file(path: Path) -> bool:
    """Return whether ``path`` itself is a regular file, no link to one. Tells nothing about what it is in a moment."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def everything_below(folder: Path) -> Iterator[Path]:
    """Yield all files, folders and links below ``folder``, however deep; none is followed. Raises ``OSError``."""
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                yield Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))


def _refusal(path: Path, what: str) -> StoreError:
    return StoreError(
        f"{path} {what}, where only a plain file belongs. It is left as it is; find out what made it, then "
        "remove it and start again."
    )
