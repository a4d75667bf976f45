"""Files of a run that grow, looked at again and again: each look reads what is new."""

import contextlib
import os
from pathlib import Path
from typing import BinaryIO, ClassVar, TypeVar

from dpo_core.contract.errors import StoreError
from dpo_core.contract.regular_file import open_regular

LONGEST_PART = 1 << 20  # of a line without an end, which no step of ours writes
BYTES_AT_ONCE = 16 << 20


class FollowedFile:
    """Lines of a file, each taken once and when it is whole. ``PAST``: of more that is new, or was there before the first
    look, the end alone is read."""

    PAST: ClassVar[int | None] = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at, self._inode, self._begun = -1, 0, b""
        self._is_within = False  # a line whose beginning was passed over
        self.forget()

    def forget(self) -> None:
        """Forget what lines said: the file was begun anew."""
        raise NotImplementedError

    def take(self, line: bytes, changed: float) -> None:
        """Take a line. ``changed``: when the file was written to last."""
        raise NotImplementedError

    def look(self) -> None:
        """Read on. A file that was begun anew is read from its beginning; one that is not there says nothing."""
        with contextlib.suppress(OSError, StoreError), os.fdopen(open_regular(self.path), "rb") as file:
            state = os.fstat(file.fileno())
            if state.st_ino != self._inode or state.st_size < self._at:
                self.forget()
                self._inode, self._at, self._begun, self._is_within = state.st_ino, 0, b"", False
            if self.PAST is not None and state.st_size - self._at > self.PAST:
                self._at, self._begun, self._is_within = state.st_size - self.PAST, b"", True
            while self._at < state.st_size and self._read(file, state.st_size, state.st_mtime):
                pass

    def _read(self, file: BinaryIO, size: int, changed: float) -> bool:
        """Read a piece -> whether there was one."""
        file.seek(self._at)
        new = file.read(min(BYTES_AT_ONCE, size - self._at))
        self._at += len(new)
        *lines, self._begun = (self._begun + new).split(b"\n")
        if self._is_within and lines:
            lines, self._is_within = lines[1:], False
        if self._is_within or len(self._begun) > LONGEST_PART:
            self._begun, self._is_within = b"", True
        for line in lines:
            self.take(line, changed)
        return bool(new)


F = TypeVar("F", bound=FollowedFile)


class FollowedFiles:
    """Files that are looked at again and again; remembers how far each was read."""

    def __init__(self) -> None:
        self._files: dict[Path, FollowedFile] = {}

    def look(self, kind: type[F], path: Path) -> F:
        """Return a file that has been read on."""
        file = self._files.setdefault(path, kind(path))
        assert isinstance(file, kind)
        file.look()
        return file
