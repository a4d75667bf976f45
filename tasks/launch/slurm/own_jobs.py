"""Which jobs in the queue are a step's own, and what the step has kept so far."""

import contextlib
from itertools import islice

from tasks.launch.launcher import CommandSpec
from tasks.launch.slurm.client import QueuedJob, queue

MAX_KEPT = 65_536  # checkpoints or shards; more is no honest step's
# After a submission whose answer was lost: a controller that was busy may answer what was asked last before what it got
# first, and a site's list may be as old as a minute.
SECONDS_BEFORE_LOOKS = (0.0, 5.0, 55.0)


def is_ours(seen: QueuedJob, command: CommandSpec) -> bool:
    """Return whether it was submitted for this step, in this place."""
    comment = seen.comment
    return comment.get("job") == command.job_fingerprint and comment.get("folder") == str(command.folder)


def active_jobs(command: CommandSpec) -> list[QueuedJob]:
    """Return the jobs of this step that wait or run, those that run first."""
    found = [seen for seen in queue([command.name]) if seen.is_active and is_ours(seen, command)]
    return sorted(found, key=lambda seen: seen.state == "PENDING")


def jobs_to_follow(command: CommandSpec) -> list[QueuedJob]:
    """Return those of them that are of no share and do not end just now."""
    return [seen for seen in active_jobs(command) if not seen.num_shares and seen.state != "COMPLETING"]


def kept(command: CommandSpec) -> tuple[tuple[str, int], ...]:
    """Return what a later start can go on from: checkpoints, shards of the cache."""
    places = (command.folder / "checkpoints", *command.writable)
    found = []
    for place in places:
        with contextlib.suppress(OSError):
            if not place.is_symlink():  # a step's word: what it points to is not looked at
                found += [(str(one), one.lstat().st_mtime_ns) for one in islice(place.iterdir(), MAX_KEPT)]
    return tuple(sorted(found))
