"""Ends the jobs of a Slurm cluster that no live run owns.

A run that watches a job holds the claim on its folder; the kernel drops it when the run dies. So a job whose claim is free
is orphaned, unless Prefect knows its run as not ended: it may be between two attempts. A job whose folder is not to be seen
from here, or whose comment is not ours, is never touched.

Where a run was killed and its job has ended since, nobody has removed the job's secrets: that is done here, too, in the
stores that this user's jobs lead to.
"""

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from dpo_core.contract.errors import PairlineError, StoreBusy
from tasks.launch.launcher import job_name
from tasks.launch.own_folder import OWN, claim
from tasks.launch.reaped import OnlyOf, Reaped, StateOf
from tasks.launch.slurm.batch import OURS
from tasks.launch.slurm.client import QueuedJob, queue
from tasks.launch.slurm.left_jobs import end, put_away
from tasks.launch.slurm.names import array_of
from tasks.launch.slurm.secrets import SECRET, remove_secrets

SECONDS_OF_A_NEW_JOB = 600.0  # a site's list may lack it for a while


def reap_jobs(dry_run: bool, state_of: StateOf, only_of: OnlyOf = None) -> list[Reaped] | None:
    """Go through this user's jobs, or those of some flow runs; None where there is no Slurm."""
    if shutil.which("squeue") is None:
        return None
    folders: dict[str, list[QueuedJob]] = {}  # what is left in one is put away together
    ours = [job for job in queue() if _is_ours(job)]
    for job in ours:
        if job.is_active and (only_of is None or job.comment.get("flow_run") in only_of):
            folders.setdefault(str(job.comment["folder"]), []).append(job)
    found = [one for jobs in folders.values() for one in _reaped(jobs, *_looked_at(jobs, dry_run, state_of))]
    if only_of is None:
        stores = {Path(str(job.comment["folder"])).parent.parent for job in ours}
        found += [one for store in sorted(stores) for one in _left_secrets(store, dry_run)]
    return found


def _left_secrets(store: Path, dry_run: bool) -> Iterator[Reaped]:
    for record in sorted({file.parent for file in store.glob(f"*/{OWN}/*/slurm/{SECRET}*") if _is_old(file)}):
        folder = record.parents[2] / record.parent.name
        with contextlib.suppress(PairlineError, OSError), claim(folder, is_of_several=True):
            if any(job.is_active and job.comment.get("folder") == str(folder) for job in queue()):
                continue
            if not dry_run:
                remove_secrets(record)
            step = folder.parent.name
            yield Reaped(
                name=f"secrets of {step}",
                step=step,
                run="",
                folder=str(folder),
                reason="the job that read them is gone",
                done="would be removed" if dry_run else "removed",
            )


def _is_old(file: Path) -> bool:
    try:
        return time.time() - file.lstat().st_mtime > SECONDS_OF_A_NEW_JOB
    except OSError:
        return False


def _is_ours(job: QueuedJob) -> bool:
    """It has our comment, and the name that it makes."""
    step, fingerprint, folder = (str(job.comment.get(name, "")) for name in ("step", "job", "folder"))
    return job.comment.get(OURS) == 1 and job.name == job_name(step, fingerprint, folder)


def _reaped(jobs: list[QueuedJob], reason: str, done: str) -> list[Reaped]:
    """The jobs of an array are one."""
    found: dict[str, Reaped] = {}
    for job in jobs:
        about = {name: str(job.comment.get(name, "")) for name in ("step", "run", "folder")}
        array = array_of(job.id)
        found.setdefault(array, Reaped(name=f"{array} {job.name}", reason=reason, done=done, **about))
    return list(found.values())


def _looked_at(jobs: list[QueuedJob], dry_run: bool, state_of: StateOf) -> tuple[str, str]:
    """Why the jobs of a folder are orphaned, and what was done. Holds the claim meanwhile, so that no run can become their
    owner."""
    folder = Path(str(jobs[0].comment["folder"]))
    runs = {str(job.comment.get("flow_run", "")) for job in jobs}
    if not folder.is_dir():
        return "", "left alone: its folder is not to be seen from here"
    try:
        with claim(folder, is_of_several=True):
            if any(state_of(run) == "live" for run in runs):
                return "", "left alone: its run has not ended, and may be between two attempts"
            return "no live run owns it", "would be cancelled" if dry_run else _ended(jobs, folder)
    except StoreBusy:
        return "", "left alone: a live run owns it"
    except (PairlineError, OSError) as error:
        return "", f"left alone: its claim cannot be looked at: {error}"


def _ended(jobs: list[QueuedJob], folder: Path) -> str:
    """SIGTERM, the time for a checkpoint, and the end; the rest of its log stands in log.txt."""
    try:
        end(jobs)
        put_away(folder, [job.key for job in jobs])
    except PairlineError as error:
        return f"failed: {error}"
    return "cancelled"
