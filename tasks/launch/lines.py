"""From what a step prints to lines of bounded length, a bounded number of which wait to be taken.

For every launcher: a step may print without end, with no line break, faster than anybody reads.
"""

import codecs
import contextlib
import io
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

LONGEST_LINE = 256 << 10  # characters; a progress line has some hundred
MOST_WAITING = (
    500  # lines, so at most 128 MB of ASCII; then the step waits, as at a terminal that does not keep up
)
T = TypeVar("T")


class LineSplitter:
    """Bytes as they come -> lines without their ends. Of a longer line the beginning, and how much was left out.

    ``any_end``: a carriage return ends a line, too, as drawn by progress bars.
    """

    def __init__(self, any_end: bool = False) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoder = io.IncrementalNewlineDecoder(decoder, translate=True) if any_end else decoder
        self._begun, self._num_begun, self._num_cut = [""], 0, 0

    def feed(self, content: bytes) -> list[str]:
        """Return the lines that end in ``content``."""
        *ended, begun = self._decoder.decode(content).split("\n")
        lines = []
        for piece in ended:
            self._add(piece)
            lines.append(self._take())
        self._add(begun)
        return lines

    def rest(self) -> list[str]:
        """Return the last line if it has no end. Nothing comes any more."""
        self._add(self._decoder.decode(b"", final=True))
        return [self._take()] if self._num_begun else []

    def _add(self, piece: str) -> None:
        kept = piece[: LONGEST_LINE - self._num_begun]
        self._num_begun += len(kept)
        self._num_cut += len(piece) - len(kept)
        if kept:
            self._begun.append(kept)

    def _take(self) -> str:
        line = "".join(self._begun) + (f" [{self._num_cut:,} characters more]" if self._num_cut else "")
        self._begun, self._num_begun, self._num_cut = [], 0, 0
        return line


class Waiting(Generic[T]):
    """Lines between the thread that reads them and the loop that takes them, in order."""

    def __init__(self) -> None:
        self._queue: queue.Queue[T] = queue.Queue(MOST_WAITING)
        self._nobody_listens = threading.Event()

    def put(self, item: T) -> None:
        """Wait for room. Once nobody listens, everything is dropped."""
        while not self._nobody_listens.is_set():
            with contextlib.suppress(queue.Full):
                return self._queue.put(item, timeout=0.5)

    def hand_over(self, take: Callable[[T], None], wait_seconds: float = 0.0) -> int:
        """Pass on what has come, but not more than may wait: a step that prints without end must not keep its watcher from
        looking at the clock. Wait at most ``wait_seconds`` for the first. -> how many there were"""
        count = 0
        with contextlib.suppress(queue.Empty):
            item = self._queue.get(timeout=wait_seconds) if wait_seconds else self._queue.get_nowait()
            while True:
                take(item)
                count += 1
                if count == MOST_WAITING:
                    break
                item = self._queue.get_nowait()
        return count

    def nobody_listens(self) -> None:
        """Let whoever puts more not wait any more."""
        self._nobody_listens.set()
