"""What became of a job that squeue does not list. The list may be a site's cache, or short for a moment; a job that is given
up is cancelled, and loses its place in the queue."""

from tasks.launch.slurm.client import ACTIVE, SlurmAway, accounted, details


def state_of_unlisted(job_id: str, name: str) -> str | None:
    """Return the state that it ended in, "" if nobody knows it any more; None if it waits or runs all the same, or if Slurm
    does not answer.

    The id alone says nothing: it may have been given again, to a job of another name.
    """
    try:
        known = details(job_id)
    except SlurmAway:
        return None
    if known.get("JobName") == name:
        state = known.get("JobState", "")
        return None if state in ACTIVE else state
    return accounted(job_id, name)
