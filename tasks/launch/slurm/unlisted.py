"""What became of a job that squeue does not list. The list may be a site's cache, or short for a moment; a job that is given
up is cancelled, and loses its place in the queue."""

from tasks.launch.slurm.client import ACTIVE, accounted, details


def is_active_unlisted(job_id: str, name: str) -> bool:
    """Return whether the controller knows a job, or one of an array, that waits or runs. Raises ``SlurmAway``."""
    return any(state in ACTIVE for state in _states(job_id, name))


def state_of_unlisted(job_id: str, name: str) -> str | None:
    """Return the state that it ended in, "" if nobody knows it any more; None if it waits or runs all the same. Raises
    ``SlurmAway``."""
    states = _states(job_id, name)
    if any(state in ACTIVE for state in states):
        return None
    return states[-1] if states else accounted(job_id, name)


def _states(job_id: str, name: str) -> list[str]:
    """The id alone says nothing: it may have been given again, to a job of another name."""
    return [known.get("JobState", "") for known in details(job_id) if known.get("JobName") == name]
