"""What a run is doing at this moment, from its files alone: who looks needs no server, and the run does not know of it."""

import math
import re
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from dpo_core.contract.progress import ProgressEvent, carries_event, parse_line
from tasks.run.files import RunFiles, log_of, moved, read_run_files
from tasks.run.folder import RUN_LOG_FILE
from tasks.run.followed import FollowedFile, FollowedFiles

NUM_WARNINGS = 5
BYTES_OF_THE_PAST = 16 << 20  # of what came since the last look, or before the first; days of training
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


class FollowedLog(FollowedFile):
    """A log that grows: its newest progress, its newest line of text, its newest warnings."""

    PAST = BYTES_OF_THE_PAST

    def forget(self) -> None:
        """Forget what the log said."""
        self.event: ProgressEvent | None = None
        self.last_line, self.told_at = "", 0.0
        self.warnings: deque[str] = deque(maxlen=NUM_WARNINGS)

    def take(self, line: bytes, changed: float) -> None:
        """Take what a line says."""
        text = line.decode(errors="replace")
        if carries_event(text):
            if (event := parse_line(text)) is not None:
                self.event, self.told_at = event, changed
        elif text.startswith(START):
            self.event, self.last_line = None, ""  # what an earlier start said is over
        elif text.strip():
            self.last_line = text
            if found := WARNED.match(text):
                self.warnings.append(text if found[0].startswith("step") else text[found.end() :])


def warned_in_training(files: RunFiles, followed: FollowedFiles | None = None) -> tuple[str, ...]:
    """Return the newest warnings of a run's training as its log has them, oldest first: each sign that an evaluation showed,
    with its step. ``followed``: of who asks again; else the log's end is read."""
    if (train := files.steps.get("train")) is None:
        return ()
    return tuple(
        dict.fromkeys((followed or FollowedFiles()).look(FollowedLog, log_of(train.folder)).warnings)
    )


class RunLook:
    """Looks at a run again and again; remembers how far it has read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._followed = FollowedFiles()

    def look(self) -> LiveRun:
        """Return how the run stands now. Raises ``StoreError`` if there is no run any more."""
        files = read_run_files(self.folder, self._followed)
        run_log = self._followed.look(FollowedLog, files.folder / RUN_LOG_FILE)
        step = self._at_work(files)
        warned = [*(files.mixture.warnings if files.mixture else ()), *run_log.warnings]
        train = files.steps.get("train")
        if train is not None:
            warned += self._followed.look(FollowedLog, log_of(train.folder)).warnings
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
        return self._followed.look(FollowedLog, log_of(moved(Path(job.folder), files.folder.parent.parent)))
