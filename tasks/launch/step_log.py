"""Where a step's lines go: all to ``log.txt``, progress to its listener, the last ones into an error."""

import contextlib
import os
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from dpo_core.contract.errors import from_os_error
from dpo_core.contract.job import LOG_FILE
from dpo_core.contract.progress import parse_line
from dpo_core.contract.regular_file import open_regular
from dpo_core.contract.visible import visible
from tasks.launch.context import Context
from tasks.launch.lines import LONGEST_LINE
from tasks.launch.own_folder import FULL_LOG, make_own_folder

NUM_LAST_LINES = 50
COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # some libraries paint their lines
LONGEST_SHOWN = 2_000  # characters of a line that listeners and errors are told; log.txt has more
LARGEST_LOG_BYTES = (
    256 << 20
)  # then it becomes log.1.txt, and the one before that is gone: months of progress lines


class LogFile:
    """``log.txt`` of a job, open to append line by line. It stays where no step can write."""

    def __init__(self, folder: Path) -> None:
        self._own = make_own_folder(folder)
        self._open()

    def _open(self) -> None:
        handle = open_regular(self._own / LOG_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._num_bytes = os.fstat(handle).st_size
        self._file = os.fdopen(handle, "a", encoding="utf-8", errors="replace", buffering=1)

    def write(self, line: str) -> None:
        """Append to the log. Raises ``OSError``."""
        self._file.write(line + "\n")
        self._num_bytes += len(line) + 1  # characters: near enough
        if self._num_bytes > LARGEST_LOG_BYTES:
            self._file.close()
            os.replace(self._own / LOG_FILE, self._own / FULL_LOG)
            self._open()
            self._file.write(f"# Goes on from {FULL_LOG}, which was full at {LARGEST_LOG_BYTES:,} bytes.\n")

    def close(self) -> None:
        """Close the log. Raises ``OSError``."""
        self._file.close()


class StepLog:
    """Takes a step's lines. ``last_lines``: the newest without progress."""

    def __init__(self, file: LogFile, context: Context) -> None:
        self._file, self._on_progress, self._listener = file, context.on_progress, context.lines
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
        self._write(line[: LONGEST_LINE + 100])
        if (event := parse_line(line)) is not None:
            if self._on_progress is not None:
                self._on_progress(event)
            if self._listener is not None:
                self._listener.progress(event)
            return
        shown = line if len(line) <= LONGEST_SHOWN else f"{line[:LONGEST_SHOWN]} [more in {LOG_FILE}]"
        self.last_lines.append(shown)
        if self._listener is not None:
            self._listener.line(shown)

    def end(self) -> None:
        """Take that nothing comes any more."""
        if self._listener is not None:
            self._listener.end()

    def _write(self, line: str) -> None:
        with contextlib.suppress(
            OSError, ValueError
        ):  # a full disk is reported by the step itself; closed by one before
            self._file.write(line)


@contextlib.contextmanager
def step_log(folder: Path, context: Context) -> Iterator[StepLog]:
    """Append to the log of the job in ``folder``, line by line. Raises ``DiskFull`` or ``StoreError``."""
    try:
        file = LogFile(folder)
    except OSError as error:
        raise from_os_error(error, f"writing {LOG_FILE}") from error
    log = StepLog(file, context)
    try:
        yield log
    finally:
        log.end()
        with contextlib.suppress(OSError):
            file.close()
