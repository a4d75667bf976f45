"""A job's output, read from its file as it grows: rank 0's lines as they are, the others' with their rank."""

import os
import re
from collections import deque
from pathlib import Path

from dpo_core.contract.errors import StoreError
from dpo_core.contract.regular_file import open_regular
from tasks.launch.launcher import OnLine
from tasks.launch.lines import LineSplitter

LABEL = re.compile(r"^ *(\d+): ?")  # of srun --label
PIECE = 1 << 20
NUM_LAST_LINES = 50


class JobLog:
    """Follows the log of one submission. ``offset``: bytes whose lines have been passed on."""

    def __init__(self, file: Path, offset: int, has_labels: bool) -> None:
        self.file, self.offset, self.has_labels = file, offset, has_labels
        self.last_lines: deque[str] = deque(maxlen=NUM_LAST_LINES)  # without progress
        self._splitter, self._begun = LineSplitter(), 0

    def pass_on(self, on_line: OnLine, to_the_end: bool = False) -> int:
        """Pass new lines on, a piece of them at most unless ``to_the_end``. -> how many there were"""
        count = 0
        while content := self._read():
            for line in self._splitter.feed(content):
                self._take(line, on_line)
                count += 1
            self.offset += self._begun + len(content) - _unfinished(content, self._begun)
            self._begun = _unfinished(content, self._begun)
            if not to_the_end:
                break
        if to_the_end:
            for line in self._splitter.rest():
                self._take(line, on_line)
            self.offset += self._begun
            self._begun = 0
        return count

    def _read(self) -> bytes:
        try:
            with os.fdopen(open_regular(self.file), "rb") as file:
                file.seek(self.offset + self._begun)
                return file.read(PIECE)
        except (OSError, StoreError):  # not there before the job starts
            return b""

    def _take(self, line: str, on_line: OnLine) -> None:
        rank, line = split_label(line) if self.has_labels else (0, line)
        if not line.startswith("{"):
            self.last_lines.append(line[:2000])
        on_line(line if rank == 0 else f"[rank {rank}] {line}")


def _unfinished(content: bytes, begun: int) -> int:
    """Bytes after the last end of a line, where ``begun`` stood before ``content``."""
    place = content.rfind(b"\n")
    return begun + len(content) if place < 0 else len(content) - place - 1


def split_label(line: str) -> tuple[int, str]:
    """Return the rank that srun put before a line, and the line. What srun and the batch script say themselves has none."""
    found = LABEL.match(line)
    return (int(found[1]), line[found.end() :]) if found else (0, line)
