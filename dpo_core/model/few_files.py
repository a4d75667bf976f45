"""Many files that are read from here and there, few of them open at a time.

A checkpoint that a thousand ranks have written has as many parts of each file, and each rank that goes on from it looks into
all of them. A process may have 1,024 files open as a rule, its connections to other ranks among them.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

MOST_OPEN = 64  # files of 50 GB: weights of 3 TB


class _Opened:
    """An open file, closed once nobody reads it any more."""

    def __init__(self, path: Path) -> None:
        self.number = -1  # should it not open
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class FewFiles:
    """The files that were read last, open; several threads may read. Raises ``OSError`` for what cannot be opened."""

    def __init__(self) -> None:
        self._opened: dict[Path, _Opened] = {}  # the one that was read last at the end
        self._lock = threading.Lock()

    def opened(self, path: Path) -> _Opened:
        """Return a file that stays open as long as it is held."""
        with self._lock:
            file = self._opened.pop(path, None)
            while file is None and len(self._opened) >= MOST_OPEN:
                self._opened.pop(next(iter(self._opened)))
            self._opened[path] = file = file or _Opened(path)
            return file

    def close(self) -> None:
        """Let go of all."""
        with self._lock:
            self._opened.clear()


@dataclass(frozen=True, slots=True)
class OneOfFew:
    """A file of such."""

    path: Path
    files: FewFiles = field(repr=False)

    def bytes(self, count: int, offset: int) -> bytes:
        """Read ``count`` bytes, fewer at the file's end."""
        file = self.files.opened(self.path)
        return os.pread(file.number, count, offset)

    def read_into(self, place: memoryview, offset: int) -> int:
        """Fill ``place``, or its beginning. -> how many bytes of it"""
        file = self.files.opened(self.path)
        read: Callable[[int, list[memoryview], int], int] = os.preadv
        return read(file.number, [place], offset)
