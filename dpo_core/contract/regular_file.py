"""Opens files in folders that somebody else may write to: what is there is data, and may be a trap.

A link could lead to a file that only the reader may open, a hard link to one that only the writer may change, and a pipe or
a device makes its reader wait for ever. So none of them is opened, nobody is waited for, and no more is read than agreed on.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from dpo_core.contract.errors import StoreError

NO_TRAP = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
REFUSED = (errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENODEV)  # link; pipe or socket without a peer; folder; device


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of the file ``path``; ``flags`` as of ``os.open``, where a new file gets the mode that the umask leaves.

    The folder's own path may hold links. Raises ``StoreError`` if ``path`` is a link, no regular file, or, opened to
    write, a file that has another name, too; ``OSError`` otherwise.
    """
    try:
        handle = os.open(path, flags & ~os.O_TRUNC | NO_TRAP, 0o666)
    except OSError as error:
        if error.errno in REFUSED:
            raise _refusal(path, "is a link or no regular file") from error
        raise
    about = os.fstat(handle)
    writes = flags & os.O_ACCMODE != os.O_RDONLY
    if not stat.S_ISREG(about.st_mode) or (writes and about.st_nlink != 1):
        os.close(handle)
        raise _refusal(path, "is a file that has another name, too" if stat.S_ISREG(about.st_mode) else "is no regular file")
    if flags & os.O_TRUNC:
        os.ftruncate(handle, 0)
    return handle


def read_regular(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file. Raises ``StoreError`` if it is longer, and as ``open_regular`` does."""
    with os.fdopen(open_regular(path), "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise StoreError(f"{path} is longer than {max_bytes:,} bytes, which no step of ours writes. Remove it.")
    return content


def is_plain_file(path: Path) -> bool:
    """Whether ``path`` itself is a regular file, no link to one. Tells nothing about what it is in a moment."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def everything_below(folder: Path) -> Iterator[Path]:
    """All files, folders and links below ``folder``, however deep; none is followed. Raises ``OSError``."""
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                yield Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))


def _refusal(path: Path, what: str) -> StoreError:
    return StoreError(f"{path} {what}, where only a plain file belongs. It is left as it is; find out what made it, then "
                      "remove it and start again.")
