"""What a run is doing at this moment, from its files alone: who looks needs no server, and the run does not know of it."""

import contextlib
import math
import os
import re
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dpo_core.contract.errors import StoreError
from dpo_core.contract.progress import ProgressEvent, carries_event, parse_line
from dpo_core.contract.regular_file import open_regular
from tasks.run.files import RunFiles, log_of, moved, read_run_files
from tasks.run.folder import RUN_LOG_FILE

NUM_WARNINGS = 5
BYTES_OF_THE_PAST = 16 << 20  # of what came since the last look, or before the first; days of training
LONGEST_PART = 1 << 20  # of a line without an end, which no step of ours writes
START = "# "  # a line of the orchestrator's in a step's log: a start of the step follows
# Training's own, of signs in an evaluation; a step's other lines carry no level. The run's log has one in each line.
WARNED = re.compile(r"step \d+: .|\d{4}-\d\d-\d\d \S+ (?:WARNING|ERROR) +(?=.)")


@dataclass(frozen=True, slots=True)
class LiveRun:
    """One look. ``event``: where the step at work stands, told ``seconds_ago``; None if it has said nothing yet.

    ``last_line``: the newest line of log, of that step or of the run.
    """

    files: RunFiles
    event: ProgressEvent | None
    seconds_ago: float
    warnings: tuple[str, ...]
    last_line: str

    @property
    def seconds_left(self) -> float | None:
        """How long the step at work still takes if it goes on as it did; None where that cannot be told."""
        if self.event is None or not self.event.rate or not self.event.total:
            return None
        left = (self.event.total - self.event.done) / self.event.rate - self.seconds_ago
        return max(0.0, left) if math.isfinite(left) else None  # a step may say what it likes


class FollowedLog:
    """A log that grows: its newest progress, its newest line of text, its newest warnings. Each look reads what is new."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self.event: ProgressEvent | None = None
        self.last_line, self.told_at = "", 0.0
        self.warnings: deque[str] = deque(maxlen=NUM_WARNINGS)
        self._at, self._inode, self._begun = -1, 0, b""
        self._is_within = False  # a line whose beginning was passed over

    def look(self) -> None:
        """Read on. A log that was begun anew is read from its beginning; one that is not there says nothing."""
        with contextlib.suppress(OSError, StoreError), os.fdopen(open_regular(self.path), "rb") as file:
            state = os.fstat(file.fileno())
            if state.st_ino != self._inode or state.st_size < self._at:
                self._forget()
                self._inode, self._at = state.st_ino, 0
            if state.st_size - self._at > BYTES_OF_THE_PAST:
                self._at, self._begun, self._is_within = state.st_size - BYTES_OF_THE_PAST, b"", True
            self._read(file, state.st_size, state.st_mtime)

    def _read(self, file: BinaryIO, size: int, changed: float) -> None:
        file.seek(self._at)
        content = self._begun + file.read(size - self._at)
        self._at = size
        *lines, self._begun = content.split(b"\n")
        if self._is_within and lines:
            lines, self._is_within = lines[1:], False
        if self._is_within or len(self._begun) > LONGEST_PART:
            self._begun, self._is_within = b"", True
        for line in lines:
            self._take(line.decode(errors="replace"), changed)

    def _take(self, line: str, changed: float) -> None:
        if carries_event(line):
            if (event := parse_line(line)) is not None:
                self.event, self.told_at = event, changed
        elif line.startswith(START):
            self.event, self.last_line = None, ""  # what an earlier start said is over
        elif line.strip():
            self.last_line = line
            if found := WARNED.match(line):
                self.warnings.append(line if found[0].startswith("step") else line[found.end() :])


class FollowedLogs:
    """Logs that are looked at again and again; remembers how far each was read."""

    def __init__(self) -> None:
        self._logs: dict[Path, FollowedLog] = {}

    def look(self, path: Path) -> FollowedLog:
        """Return a log that has been read on."""
        log = self._logs.setdefault(path, FollowedLog(path))
        log.look()
        return log


def warned_in_training(files: RunFiles, logs: FollowedLogs | None = None) -> tuple[str, ...]:
    """Return the newest warnings of a run's training as its log has them, oldest first: each sign that an evaluation showed,
    with its step. ``logs``: of who asks again; else the log's end is read."""
    if (train := files.steps.get("train")) is None:
        return ()
    return tuple(dict.fromkeys((logs or FollowedLogs()).look(log_of(train.folder)).warnings))


class RunLook:
    """Looks at a run again and again; remembers how far it has read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._logs = FollowedLogs()

    def look(self) -> LiveRun:
        """Return how the run stands now. Raises ``StoreError`` if there is no run any more."""
        files = read_run_files(self.folder)
        run_log = self._logs.look(files.folder / RUN_LOG_FILE)
        step = self._at_work(files)
        warned = [*(files.mixture.warnings if files.mixture else ()), *run_log.warnings]
        train = files.steps.get("train")
        if train is not None:
            warned += self._logs.look(log_of(train.folder)).warnings
        return LiveRun(
            files=files,
            event=step.event if step else None,
            seconds_ago=max(0.0, time.time() - step.told_at) if step and step.event else 0.0,
            warnings=tuple(dict.fromkeys(warned)),
            last_line=(step.last_line if step else "") or run_log.last_line,
        )

    def _at_work(self, files: RunFiles) -> FollowedLog | None:
        """The log of the job that has begun last, unless that has ended."""
        job = files.record.jobs[-1] if files.record.jobs and files.record.state == "running" else None
        if job is None or job.reused or job.seconds is not None:
            return None
        return self._logs.look(log_of(moved(Path(job.folder), files.folder.parent.parent)))
