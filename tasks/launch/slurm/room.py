"""Submits a job; where a limit on jobs in the queue is reached, once there is room: a sweep may be larger than the limit.

As with hours in the queue, that is no failure. A limit that no end of a job can help with is refused with Slurm's sentence.
"""

import contextlib

from tasks.launch.context import Context
from tasks.launch.slurm.batch import BatchJob
from tasks.launch.slurm.client import QueueFull, SlurmAway, queue, submit

SECONDS_BETWEEN_TRIES = 30.0


def submit_when_there_is_room(job: BatchJob, context: Context) -> str:
    """Return the new job's id. Raises as ``submit`` does, and ``Stopped``."""
    has_told = False
    while True:
        try:
            return submit(job.flags, job.script)
        except QueueFull as full:
            if not full.is_shared and not _has_jobs():
                raise
            if not has_told:
                context.tell_line(f"{full.problem} Waiting until others have ended.")
                has_told = True
        context.sleep(SECONDS_BETWEEN_TRIES)
        context.raise_if_stopped()


def _has_jobs() -> bool:
    """Whether this user has any job that will end."""
    with contextlib.suppress(SlurmAway):
        return any(seen.is_active for seen in queue())
    return True
