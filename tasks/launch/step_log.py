"""Where a step's lines go: all to ``log.txt``, progress to its listener, the last ones into an error."""

import contextlib
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from dpo_core.errors import from_os_error
from dpo_core.jobs import LOG_FILE
from dpo_core.progress import parse_line
from dpo_core.visible import visible
from tasks.launch.launcher import OnProgress, current_line_listener

NUM_LAST_LINES = 50
COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # some libraries paint their lines


class StepLog:
    """Takes a step's lines. ``last_lines``: the newest without progress."""

    def __init__(self, file: TextIO, on_progress: OnProgress | None) -> None:
        self._file, self._on_progress, self._listener = file, on_progress, current_line_listener()
        self.last_lines: deque[str] = deque(maxlen=NUM_LAST_LINES)

    def head(self, line: str) -> None:
        """Write a line of our own that says what follows."""
        self._write(f"\n# {visible(line)}")

    def line(self, line: str) -> None:
        """Take one of the step's own lines. A progress bar, which returns to the beginning of its line, is as many lines;
        what else would steer a terminal that shows the log is written as an escape."""
        for part in filter(None, line.split("\r")) if "\r" in line else (line,):
            self._take(visible(COLOUR.sub("", part)))

    def _take(self, line: str) -> None:
        self._write(line)
        if (event := parse_line(line)) is not None:
            if self._on_progress is not None:
                self._on_progress(event)
            if self._listener is not None:
                self._listener.progress(event)
            return
        self.last_lines.append(line)
        if self._listener is not None:
            self._listener.line(line)

    def end(self) -> None:
        """Nothing comes any more."""
        if self._listener is not None:
            self._listener.end()

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError):  # a full disk is reported by the step itself
            self._file.write(line + "\n")


@contextlib.contextmanager
def step_log(folder: Path, on_progress: OnProgress | None) -> Iterator[StepLog]:
    """Append to ``folder/log.txt``, line by line. Raises ``DiskFull`` or ``StoreError``."""
    try:
        file = (folder / LOG_FILE).open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise from_os_error(error, f"writing {LOG_FILE}") from error
    log = StepLog(file, on_progress)
    try:
        yield log
    finally:
        log.end()
        with contextlib.suppress(OSError):
            file.close()
