"""Who wants to know which jobs a run uses: the run's folder records them, also those of a run that fails."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from dpo_core.contract.jobs import Job

Moment = Literal["reused", "started", "ended"]
OnJob = Callable[[Job, Moment], None]

_on_job: ContextVar[OnJob | None] = ContextVar("job listener", default=None)


@contextmanager
def hearing_of_jobs(on_job: OnJob) -> Iterator[None]:
    """Tell ``on_job`` of every job that is run or reused inside the ``with`` block."""
    token = _on_job.set(on_job)
    try:
        yield
    finally:
        _on_job.reset(token)


def tell_job(job: Job, moment: Moment) -> None:
    """Called where jobs run."""
    if on_job := _on_job.get():
        on_job(job, moment)
