"""A limit on jobs in the queue is waited for, as with hours in the queue: a sweep may be larger than it.

A limit that no end of a job can help with is refused with Slurm's sentence. Orchestrators that are jobs themselves would
wait for each other: each says in its job's comment when it looked last, and waits for those alone that came after it, which
give up.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from dpo_core.contract.errors import PairlineError
from tasks.launch.context import Context
from tasks.launch.slurm.batch import BatchJob
from tasks.launch.slurm.client import QueuedJob, QueueFull, SlurmAway, comment, details, queue, submit
from tasks.launch.slurm.names import array_of

SECONDS_BETWEEN_TRIES = 30.0
WAITS, SECONDS_UNTIL_STALE = (
    "pairline-waits",
    300.0,
)  # Unix seconds, in the comment of a job in which room is waited for
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
        _say_in_own_job()
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


def _own_job() -> str:
    """The job that this process may be part of, or its array."""
    return os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID", "")


def _say_in_own_job() -> None:
    """Never over a comment of somebody's own."""
    if own := _own_job():
        with contextlib.suppress(PairlineError):  # then the others wait for this one
            said = [known.get("Comment", "") for known in details(os.environ.get("SLURM_JOB_ID", own))]
            if said and (said[0] in ("", "(null)") or WAITS in said[0]):
                comment(os.environ.get("SLURM_JOB_ID", own), json.dumps({WAITS: int(time.time())}))


def _states_of_what_ends() -> set[str]:
    """The states of this user's jobs that will end, but for the job that this process may be part of."""
    with contextlib.suppress(SlurmAway):
        active = [seen for seen in queue() if seen.is_active and array_of(seen.id) != _own_job()]
        return {seen.state for seen in active if seen.reason not in NEVER_ENDS and not _waits_before(seen)}
    return {"UNKNOWN"}


def _waits_before(seen: QueuedJob) -> bool:
    """Whether an orchestrator runs in it that waits for room, and does not give up in this one's favour."""
    at, own = seen.comment.get(WAITS), _own_job()
    if not isinstance(at, int) or time.time() - at > SECONDS_UNTIL_STALE:
        return False
    return not own or int(array_of(seen.id)) < int(own)
