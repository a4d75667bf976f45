"""Puts away what is left of a step's earlier start: its job ended, the rest of its log copied, its secrets removed."""

import contextlib
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from tasks.launch.context import Context
from tasks.launch.log_position import forget_position, go_back_to_position, saved_times
from tasks.launch.slurm.client import QueuedJob, cancel, queue, signal_steps
from tasks.launch.slurm.names import array_of, share_of
from tasks.launch.slurm.record import fence, record_folder
from tasks.launch.slurm.secrets import remove_secrets
from tasks.launch.slurm.share_logs import mark_read, pass_rest_on
from tasks.launch.step_log import LogFile

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_BE_GONE = 120.0  # a site's KillWait, and the end of its nodes' own programs
OF_NO_RUN = Context()


def end(jobs: Sequence[QueuedJob], context: Context = OF_NO_RUN) -> None:
    """Ask the ranks of jobs to stop, give them the time for a checkpoint, end them, and wait until they are gone.

    An array is ended as one, also what of it is not named.
    """
    arrays = sorted({array_of(job.id) for job in jobs})
    if running := sorted({array_of(job.id) for job in jobs if job.state == "RUNNING"}):
        for one in arrays:  # or they would begin where the others end
            cancel(one, if_it_waits=True)
        for one in running:
            signal_steps(one, "TERM")
        _wait_until_gone(jobs, max(float(job.comment.get("grace", 30)) for job in jobs), context)
    for one in arrays:
        cancel(one)
    _wait_until_gone(jobs, SECONDS_TO_BE_GONE, context)
    for job in jobs:
        if folder := str(job.comment.get("folder", "")):
            fence(record_folder(Path(folder)), job.key)


def put_away(folder: Path, keys: Iterable[str] = ()) -> None:
    """Copy what an ended job printed since its log was last read, and forget it. For who holds the claim on ``folder``.

    ``keys``: of jobs that may not stand in the saved position.
    """
    copy_rest_of_log(folder, keys)
    forget_position(folder)
    remove_secrets(record_folder(folder))


def copy_rest_of_log(folder: Path, keys: Iterable[str] = ()) -> None:
    """Append to ``log.txt`` what stands in the job's own log and not there."""
    record = record_folder(folder)
    saved = go_back_to_position(folder, saved_times(folder))
    unread: dict[str, str | None] = dict.fromkeys(filter(share_of, keys))
    unread |= saved
    if not unread:
        return
    with contextlib.suppress(OSError), contextlib.closing(LogFile(folder)) as file:
        for key, offset in unread.items():
            mark_read(record, key, pass_rest_on(record, key, offset, file.write))


def _wait_until_gone(jobs: Sequence[QueuedJob], seconds: float, context: Context) -> None:
    ids, names = {array_of(job.id) for job in jobs}, {job.name for job in jobs}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        context.raise_if_stopped()
        if not any(array_of(one.id) in ids and one.is_active for one in queue(names)):
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)
