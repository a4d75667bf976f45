"""Puts away what is left of a step's earlier start: its job ended, the rest of its log copied, its secrets removed."""

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dpo_core.contract.errors import PairlineError
from tasks.launch.context import Context
from tasks.launch.launcher import CommandSpec
from tasks.launch.log_position import forget_position, go_back_to_position, saved_times
from tasks.launch.slurm.client import QueuedJob, cancel, queue, signal_steps
from tasks.launch.slurm.ends import failed_to_launch
from tasks.launch.slurm.names import array_of, share_of
from tasks.launch.slurm.own_jobs import active_jobs
from tasks.launch.slurm.record import fence, record_folder
from tasks.launch.slurm.secrets import remove_secrets
from tasks.launch.slurm.share_logs import pass_rests_on
from tasks.launch.slurm.unlisted import is_active_unlisted
from tasks.launch.step_log import LogFile

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_BE_GONE = 120.0  # a site's KillWait, and the end of its nodes' own programs
OF_NO_RUN = Context()


def end(jobs: Sequence[QueuedJob], context: Context = OF_NO_RUN, grace_seconds: float | None = None) -> None:
    """Ask the ranks of jobs to stop, give them the time for a checkpoint, end them, and wait until they are gone.

    An array is ended as one, also what of it is not named. ``grace_seconds``: that time, 0 for none; by default what the
    jobs were submitted with.
    """
    arrays = sorted({array_of(job.id) for job in jobs})
    running = sorted({array_of(job.id) for job in jobs if job.state == "RUNNING"})
    if running and grace_seconds != 0:
        for one in arrays:  # or they would begin where the others end
            cancel(one, if_it_waits=True)
        for one in running:
            signal_steps(one, "TERM")
        given = max(float(job.comment.get("grace", 30)) for job in jobs)
        _wait_until_gone(jobs, given if grace_seconds is None else grace_seconds, context)
    for one in arrays:
        cancel(one)
    _wait_until_gone(jobs, SECONDS_TO_BE_GONE, context)
    for job in jobs:
        if folder := str(job.comment.get("folder", "")):
            fence(record_folder(Path(folder)), job.key)


def end_what_came_late(command: CommandSpec) -> None:
    """End what a submission has left that was cut short, or whose answer was lost: nobody will follow it."""
    with contextlib.suppress(PairlineError):  # the error that is on its way counts
        if late := [job for job in active_jobs(command) if job.state != "COMPLETING"]:
            end(late)


def cancel_by_key(command: CommandSpec, key: str) -> None:
    """End a job of the step; its id may be somebody else's by now."""
    with contextlib.suppress(PairlineError):  # it ends with the step
        for job in active_jobs(command):
            if job.key == key:
                cancel(job.id)


def cancel_shares_that_wait(command: CommandSpec) -> None:
    """End what a submission left whose answer was lost and that came late, when all shares are there."""
    with contextlib.suppress(PairlineError):
        for job in active_jobs(command):
            if job.num_shares and (job.state == "PENDING" or failed_to_launch(job.reason)):
                cancel(job.id)


def put_away(folder: Path, keys: Iterable[str] = ()) -> None:
    """Copy what an ended job printed since its log was last read, and forget it. For who holds the claim on ``folder``.

    ``keys``: of jobs that may not stand in the saved position.
    """
    copy_rest_of_log(folder, keys)
    forget_position(folder)
    remove_secrets(record_folder(folder))


def copy_rest_of_log(folder: Path, keys: Iterable[str] = ()) -> None:
    """Append to ``log.txt`` what stands in the job's own log and not there."""
    saved = go_back_to_position(folder, saved_times(folder))
    unread: dict[str, str | None] = dict.fromkeys(filter(share_of, keys))
    unread |= saved
    if not unread:
        return
    with contextlib.suppress(OSError), contextlib.closing(LogFile(folder)) as file:
        pass_rests_on(folder, unread, {}, file.write)


def _wait_until_gone(jobs: Sequence[QueuedJob], seconds: float, context: Context) -> None:
    names = {array_of(job.id): job.name for job in jobs}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        context.raise_if_stopped()
        if not _are_active(names):
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _are_active(names: Mapping[str, str]) -> bool:
    """``names``: ids of jobs, of whole arrays -> what they are called. What the list lacks may be at work all the same."""
    listed = [one for one in queue(set(names.values())) if array_of(one.id) in names]
    lacking = names.keys() - {array_of(one.id) for one in listed}
    return any(one.is_active for one in listed) or any(is_active_unlisted(one, names[one]) for one in lacking)
