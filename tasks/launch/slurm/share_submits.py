"""Submits shares while others of the same pass are watched: a turn of it takes no longer than Slurm's answers.

answer                      then
the array's id              its shares are followed
no room for so many         half as many are tried, down to one; for that one room is waited for
none, or one without an id  after a minute in which none of them has shown up in the queue they are submitted again
"""

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tasks.launch.context import Context
from tasks.launch.launcher import CommandSpec
from tasks.launch.patience import Silence
from tasks.launch.slurm.client import QueuedJob, QueueFull, SlurmAway, submit
from tasks.launch.slurm.names import index_of, share_folder, share_key
from tasks.launch.slurm.own_jobs import SECONDS_BEFORE_LOOKS, active_jobs
from tasks.launch.slurm.record import record_folder
from tasks.launch.slurm.room import SECONDS_BETWEEN_TRIES, Room
from tasks.launch.slurm.shares import Shares
from tasks.launch.slurm.submits import Submits

log = logging.getLogger(__name__)


@dataclass
class ShareSubmissions:
    """Which shares are to be submitted. ``save``: saves the position, with that of jobs that may come to be."""

    launcher: Submits
    command: CommandSpec
    count: int
    context: Context
    save: Callable[[Mapping[str, str]], None]
    waiting: set[int] = field(default_factory=set)
    _at_once: int = 0  # how many are tried at a time; 0: all
    _is_in_doubt: bool = False  # an earlier one may have been taken, and be what fills the queue
    _looks: list[float] = field(default_factory=list)  # seconds until the next ones
    _next: float = 0.0  # monotonic

    def __post_init__(self) -> None:
        self._room = Room(self.context, self.launcher.patience_seconds)
        self._silence = Silence(self.launcher.patience_seconds)

    def add(self, wanted: set[int]) -> None:
        """Take shares that are to be submitted in the next turns."""
        self.waiting |= wanted

    def turn(self, followed: set[str]) -> list[tuple[int, str, str]]:
        """Return which shares are in the queue now: index, id, key. ``followed``: keys of all that have been so far. Raises
        what Slurm refuses with, ``SlurmAway`` once it takes too long."""
        if not self.waiting or time.monotonic() < self._next:
            return []
        try:
            if self._is_in_doubt and (late := self._submitted_late(followed)):
                return self._taken(late)
            if self._looks:
                self._next = time.monotonic() + self._looks.pop(0)
                return []
            return self._taken(self._submit(is_again=bool(followed)))
        except QueueFull as full:
            self._silence.end()
            self._make_do_with_less(full, is_first=not followed)
        except SlurmAway as away:
            log.warning("%s Looking whether it was submitted before it is tried again.", away)
            if self._silence.is_too_long(away):
                raise
            first, *self._looks = SECONDS_BEFORE_LOOKS if not self._is_in_doubt else SECONDS_BEFORE_LOOKS[1:]
            self._next, self._is_in_doubt = time.monotonic() + first, True
        return []

    def _taken(self, jobs: list[tuple[int, str, str]]) -> list[tuple[int, str, str]]:
        self.waiting -= {index for index, _, _ in jobs}
        if not self.waiting:
            self._at_once, self._is_in_doubt, self._looks = 0, False, []
            self._silence.end()
        return jobs

    def _submit(self, is_again: bool) -> list[tuple[int, str, str]]:
        indices = sorted(self.waiting)[: self._at_once or None]
        shares, key = Shares(tuple(indices), self.count, is_again), uuid.uuid4().hex[:12]
        keys = {index: share_key(key, index, self.count) for index in indices}
        for index in indices:
            share_folder(record_folder(self.command.folder), index, self.count).mkdir(exist_ok=True)
        described = self.launcher.describe(self.command, self.context, key, shares)
        self.save(dict.fromkeys(keys.values(), "0"))
        array = submit(described.flags, described.script)
        return [(index, f"{array}_{index}", keys[index]) for index in indices]

    def _make_do_with_less(self, full: QueueFull, is_first: bool) -> None:
        num_tried = len(sorted(self.waiting)[: self._at_once or None])
        if num_tried > 1:
            self._at_once = num_tried // 2
            return
        self._room.wait_for(full, is_first)
        self._next = time.monotonic() + SECONDS_BETWEEN_TRIES

    def _submitted_late(self, followed: set[str]) -> list[tuple[int, str, str]]:
        found: dict[int, QueuedJob] = {}
        for job in active_jobs(self.command):
            index, is_new = index_of(job.id), job.key not in followed and job.state != "COMPLETING"
            if is_new and job.num_shares == self.count and index is not None and index in self.waiting:
                found.setdefault(index, job)
        return [(index, job.id, job.key) for index, job in found.items()]
