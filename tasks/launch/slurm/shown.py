"""What the run's page is told of a job: what the queue says of it, and what its starts have written down."""

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from tasks.launch.cluster_job import ClusterJob
from tasks.launch.launcher import CommandSpec
from tasks.launch.slurm.client import QueuedJob
from tasks.launch.slurm.history import starts_so_far
from tasks.launch.slurm.record import record_folder

NO_TIME = ("", "N/A")
NO_REASON = "None"  # as Slurm says it before it has looked at a job
HELD = "JobHeld"  # how the reasons of a hold begin: JobHeldUser, JobHeldAdmin


def cluster_job(
    command: CommandSpec, job_id: str, keys: Sequence[str], seen: QueuedJob | None, word: str
) -> ClusterJob:
    """Return where the job stands, or an array, whose jobs are ``keys``. ``word`` says it where the queue does not."""
    record: Path = record_folder(command.folder)
    waits = seen is not None and seen.state == "PENDING"
    lines: list[tuple[str, ...]] = [
        ("squeue", "-j", job_id),
        ("scancel", "--signal=TERM", job_id),
        ("scancel", job_id),
    ]
    if seen is not None and waits and seen.reason.startswith(HELD):
        lines.append(("scontrol", "release", job_id))
    return ClusterJob(
        command.step,
        job_id,
        command.name,
        word or (seen.state if seen is not None else ""),
        partition="" if seen is None else seen.partition,
        nodes="" if seen is None else seen.nodes,
        reason=seen.reason if seen is not None and waits and seen.reason != NO_REASON else "",
        submitted=seen.submitted if seen is not None and seen.submitted not in NO_TIME else "",
        expected=seen.start if seen is not None and waits and seen.start not in NO_TIME else "",
        starts=starts_so_far(record, keys, time.time()),
        log=str(record / f"{keys[0]}.log") if len(keys) == 1 else f"{record}/share-*/*.log",
        commands=tuple(map(shlex.join, lines)),
    )
