"""A job that is watched, and what bounds it."""

from dataclasses import dataclass
from pathlib import Path

from tasks.launch.slurm.job_log import JobLog


@dataclass(frozen=True, slots=True)
class Followed:
    """A job of ours in the queue."""

    key: str
    id: str
    record: Path
    log: JobLog


@dataclass(frozen=True, slots=True)
class JobLimits:
    """How long a step may run, how long Slurm may be away, how often it is asked."""

    spent_seconds: float  # running time of earlier jobs of the same step
    grace_seconds: float
    patience_seconds: float
    poll_seconds: float
    folder_gib: float | None
