"""A step's job on a cluster on the run's page: one artifact a job, changed in place as often as the job's state changes."""

import threading
import time
from dataclasses import dataclass, field
from uuid import UUID

from tasks.launch.cluster_job import ClusterJob, JobStart
from tasks.launch.context import OnClusterJob
from tasks.report.tables import markdown_table
from tasks.report.timeline import duration
from tasks.show.artifacts import artifact_key, change_artifact, markdown_artifact, never_fails
from tasks.text.escape import markdown_block, markdown_text

ABOUT = ("partition", "nodes", "reason", "expected", "submitted", "name", "log")
CALLED = {"expected": "expected to start", "reason": "waits for"}


def cluster_markdown(job: ClusterJob) -> str:
    """Return the page: where the job stands, its starts so far, the commands to copy."""
    about = [
        {"what": CALLED.get(name, name), "value": str(getattr(job, name))}
        for name in ABOUT
        if getattr(job, name)
    ]
    starts = [_row(number, start) for number, start in enumerate(job.starts, 1)]
    parts = [
        markdown_text(job.in_words) + ".",
        markdown_table(about),
        *((markdown_text("Starts so far:"), markdown_table(starts)) if starts else ()),
        markdown_block("\n".join(job.commands)),
    ]
    return "\n\n".join(parts) + "\n"


def _row(number: int, start: JobStart) -> dict[str, object]:
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(start.began)) if start.began else ""
    return {
        "start": number,
        "job": start.job_id,
        "nodes": start.nodes,
        "began": began,
        "ran": duration(start.seconds) if start.end else "runs",
        "went on from step": "the beginning" if start.from_step is None else start.from_step,
        "ended": start.end,
    }


@dataclass
class ClusterPage:
    """Shows the jobs of one run, of any of its threads. ``family``: the run's name, which the artifacts' keys carry."""

    family: str
    heard_by: OnClusterJob | None = None  # a terminal
    artifacts: dict[str, UUID] = field(default_factory=dict)  # job's name -> what shows it
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, job: ClusterJob) -> None:
        """Show where the job stands now, and tell it. Failing to show it is logged, and stops nothing."""
        if self.heard_by is not None:
            self.heard_by(job)
        with self.lock:
            _show(self, job)


@never_fails
def _show(page: ClusterPage, job: ClusterJob) -> None:
    markdown, description = cluster_markdown(job), job.in_words
    if job.name not in page.artifacts:
        key = artifact_key(f"job-{job.step}", page.family)
        page.artifacts[job.name] = markdown_artifact(markdown, key, description)
    else:
        change_artifact(page.artifacts[job.name], markdown, description)
