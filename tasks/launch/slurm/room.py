"""A limit on jobs in the queue is waited for, as with hours in the queue: a sweep may be larger than it.

A limit that no end of a job can help with is refused with Slurm's sentence.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from tasks.launch.context import Context
from tasks.launch.slurm.batch import BatchJob
from tasks.launch.slurm.client import QueueFull, SlurmAway, queue, submit
from tasks.launch.slurm.names import array_of

SECONDS_BETWEEN_TRIES = 30.0
NEVER_ENDS = ("JobHeldUser", "JobHeldAdmin", "DependencyNeverSatisfied")


@dataclass
class Room:
    """Decides whether room in the queue is waited for. ``patience_seconds``: while no job of this user's is there to end,
    with a limit that others share."""

    context: Context
    patience_seconds: float
    answered: float = -math.inf  # when Slurm said last that there is none: monotonic
    _alone_since: float = math.inf
    _has_told: bool = False

    def wait_for(self, full: QueueFull, is_first: bool = True) -> None:
        """Say that it is waited for. Raises ``full`` where no end of a job can be hoped for, at the second look unless
        ``is_first``: the last job may just have ended."""
        self.answered = time.monotonic()
        is_sure = self._alone_since < math.inf or (is_first and not self._has_told)
        states = _states_of_what_ends()
        has_jobs = bool(states - {"COMPLETING"})  # in which a node may hang without end
        self._alone_since = math.inf if has_jobs else min(self._alone_since, self.answered)
        patience_seconds = self.patience_seconds if full.is_shared or states else 0.0
        if is_sure and self.answered - self._alone_since >= patience_seconds:
            raise full
        if not self._has_told:
            self.context.tell_line(f"{full.problem} Waiting until others have ended.")
            self._has_told = True


def submit_when_there_is_room(job: BatchJob, room: Room, is_there: Callable[[], bool]) -> str:
    """Return the new job's id. ``is_there``: whether an earlier submission, whose answer was lost, is in the queue by now,
    where it may be what fills it. Raises as ``submit`` does, ``SlurmAway`` also then, and ``Stopped``."""
    while True:
        try:
            return submit(job.flags, job.script)
        except QueueFull as full:
            room.wait_for(full)
        room.context.sleep(SECONDS_BETWEEN_TRIES)
        room.context.raise_if_stopped()
        if is_there():
            raise SlurmAway("What was submitted before is in the queue.")


def _states_of_what_ends() -> set[str]:
    """The states of this user's jobs that will end, but for the job that this process may be part of."""
    own = {os.environ.get(name) for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID")}
    with contextlib.suppress(SlurmAway):
        active = [seen for seen in queue() if seen.is_active and array_of(seen.id) not in own]
        return {seen.state for seen in active if seen.reason not in NEVER_ENDS}
    return {"UNKNOWN"}
