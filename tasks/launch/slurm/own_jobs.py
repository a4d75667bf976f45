"""Which jobs in the queue are a step's own, and what the step has kept so far."""

import contextlib
import re
from itertools import islice
from pathlib import Path

from dpo_core.contract.errors import TimedOut
from tasks.launch.launcher import CommandSpec
from tasks.launch.slurm.batch import WITH_CHECKPOINTS
from tasks.launch.slurm.client import QueuedJob, queue
from tasks.launch.slurm.followed import Followed
from tasks.launch.slurm.record import starts_of

CHECKPOINTS, CHECKPOINT = "checkpoints", re.compile(r"step-[0-9]{1,18}")
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
    """Return what a later start can go on from: whole checkpoints, files of the cache. What a kill in the middle of a write
    left, or such a write at work, has a name with a dot before it."""
    found = []
    for place in (command.folder / CHECKPOINTS, *command.writable):
        with contextlib.suppress(OSError):
            if not place.is_symlink():  # a step's word: what it points to is not looked at
                whole = (one for one in place.iterdir() if not one.name.startswith("."))
                found += [(str(one), one.lstat().st_mtime_ns) for one in islice(whole, MAX_KEPT)]
    return tuple(sorted(found))


def has_kept_more(
    command: CommandSpec, before: tuple[tuple[str, int], ...], attached: Followed | None
) -> bool:
    """Return whether a job has kept anything. ``before``: what was kept when this orchestrator took it on. Of one that it
    ``attached`` to, that was long after it began: its first start says what it began with."""
    if (now := kept(command)) != before or attached is None:
        return now != before
    starts = starts_of(attached.record, attached.key)
    if not starts or not starts[0].began:
        return False
    places = (Path(name) for name, _ in now)
    names = (place.name for place in places if place.parent == command.folder / CHECKPOINTS)
    steps = [int(name.removeprefix("step-")) for name in names if CHECKPOINT.fullmatch(name)]
    return max(steps, default=-1) > (-1 if starts[0].from_step is None else starts[0].from_step)


def nothing_kept(step: str) -> TimedOut:
    """Return the error of a step whose job came to its limit and has kept nothing: the next one would fare the same."""
    more = (
        "Raise slurm.time_limit_minutes, or have checkpoints written more often (train.checkpoint_every, "
        "train.checkpoint_every_minutes): one checkpoint must fit into one job."
        if step in WITH_CHECKPOINTS
        else "Raise slurm.time_limit_minutes."
    )
    return TimedOut(
        f"The Slurm job of step {step} came to its time limit before it had kept anything new.", more
    )
