"""What earlier starts of a run have written down: a line a step, and a line an evaluation."""

import json
from pathlib import Path

from dpo_core.contract.answers_file import ANSWERS_FILE
from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.metrics_file import EVALUATIONS_FILE, METRICS_FILE, Metrics, read_metrics
from dpo_core.contract.store import write_bytes


def metrics_until(job: TrainJob, step: int) -> tuple[Metrics, Metrics]:
    """Return a job's metrics and evaluations up to ``step``, and remove what is there of later ones."""
    paths = (job.out_dir / METRICS_FILE, job.out_dir / EVALUATIONS_FILE)
    for path in (*paths, job.out_dir / ANSWERS_FILE):
        drop_after(path, step)
    metrics, evaluations = map(read_metrics, paths)
    return metrics, evaluations


def drop_after(path: Path, step: int) -> None:
    """Forget lines of steps that are about to be run again, and what a power failure made of their lines."""
    if path.is_file():
        kept = []
        for line in path.read_bytes().splitlines(keepends=True):  # texts may hold what else ends lines
            try:
                if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                    break
            except (
                ValueError
            ):  # nothing below a checkpoint is unreadable: it is on the disk before the checkpoint is
                break
            kept.append(line)
        write_bytes(path, b"".join(kept))
