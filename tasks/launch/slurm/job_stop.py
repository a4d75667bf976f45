"""Ends jobs that run or wait: their ranks are asked to stop and get the time for a checkpoint, then they are cancelled.

A Slurm that does not answer meanwhile costs no checkpoint: ranks are asked through the record, and it says when they have
ended.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tasks.launch.slurm.client import QueuedJob, SlurmAway, cancel, signal_steps
from tasks.launch.slurm.followed import Followed
from tasks.launch.slurm.left_jobs import SECONDS_TO_BE_GONE, end
from tasks.launch.slurm.record import SECONDS_FOR_RANKS_TO_END, fence, starts_of, wait_for_ranks
from tasks.launch.slurm.unlisted import is_active_unlisted

TURN_SECONDS, SECONDS_BETWEEN_TRIES = 0.3, 2.0
SECONDS_AT_THE_END = 0.5
SECONDS_FOR_AN_ANSWER = 30.0  # of a Slurm that is away; then `pairline reap` has to cancel the job


@dataclass(frozen=True, slots=True)
class JobStop:
    """Stops one job. ``seen``: it as the list has it, at most so many seconds old; ``meanwhile`` is called while it ends."""

    job: Followed
    name: str
    seen: Callable[[float], QueuedJob | None]
    meanwhile: Callable[[], None]

    def stop(self, grace_seconds: float) -> None:
        """Return once it is gone, or was given up. Raises ``SlurmAway`` where it could not be cancelled."""
        if self._ranks_are_at_work() and not self._is_suspended() and self._is_at_work():
            self._ask_ranks(grace_seconds)
            until = time.monotonic() + grace_seconds
            while time.monotonic() < until and self._is_at_work():
                self.meanwhile()
                time.sleep(TURN_SECONDS)
        _until_slurm_answers(self._cancel)
        until = time.monotonic() + SECONDS_TO_BE_GONE
        while self._is_at_work() and time.monotonic() < until:
            time.sleep(TURN_SECONDS)
        _end_ranks([self.job])

    def _ask_ranks(self, grace_seconds: float) -> None:
        try:
            signal_steps(self.job.id, "TERM" if grace_seconds else "KILL")
        except SlurmAway:
            fence(self.job.record, self.job.key, int(grace_seconds))

    def _cancel(self) -> None:
        if self._is_active():
            cancel(self.job.id)

    def _is_suspended(self) -> bool:
        """What is suspended refuses SIGTERM ("can not be altered now"), and scancel kills it at once; what was so may have
        gone on since it was looked at."""
        try:
            seen = self.seen(0.0)
        except SlurmAway:
            return False
        return seen is not None and seen.state == "SUSPENDED"

    def _is_at_work(self) -> bool:
        try:
            return self._is_active()
        except SlurmAway:
            return self._ranks_are_at_work()

    def _is_active(self) -> bool:
        if (seen := self.seen(SECONDS_AT_THE_END)) is not None:
            return seen.is_active
        return is_active_unlisted(self.job.id, self.name)

    def _ranks_are_at_work(self) -> bool:
        return _ranks_are_at_work(self.job)


def stop_shares(
    jobs: Sequence[Followed], active: Callable[[], list[QueuedJob]], grace_seconds: float
) -> None:
    """Stop what is ``active`` of a step in shares; ``jobs``: those that are followed. Return once all are gone, or were
    given up. Raises ``SlurmAway`` where they could not be cancelled."""
    try:
        end(active(), grace_seconds=grace_seconds)
    except SlurmAway:
        for job in jobs:
            fence(job.record, job.key, int(grace_seconds))
        until = time.monotonic() + grace_seconds
        while time.monotonic() < until and any(map(_ranks_are_at_work, jobs)):
            time.sleep(TURN_SECONDS)
        _until_slurm_answers(lambda: end(active(), grace_seconds=0.0))
    finally:
        _end_ranks(jobs)


def _end_ranks(jobs: Sequence[Followed]) -> None:
    """Those that nobody else can end."""
    for job in jobs:
        fence(job.record, job.key)
    until = time.monotonic() + SECONDS_FOR_RANKS_TO_END
    for job in jobs:
        wait_for_ranks(job.record, job.key, until - time.monotonic())


def _until_slurm_answers(what: Callable[[], None]) -> None:
    until = time.monotonic() + SECONDS_FOR_AN_ANSWER
    while True:
        try:
            return what()
        except SlurmAway:
            if time.monotonic() >= until:
                raise
            time.sleep(SECONDS_BETWEEN_TRIES)


def _ranks_are_at_work(job: Followed) -> bool:
    """Whether the newest start has ranks that have not said how they ended."""
    starts = starts_of(job.record, job.key)
    return (
        bool(starts) and starts[-1].exit_code is None and any(rank.code is None for rank in starts[-1].ranks)
    )
