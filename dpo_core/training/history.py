"""What earlier starts of a run have written down: a line a step, and a line an evaluation."""

import json
from pathlib import Path

from dpo_core.contract.answers_file import ANSWERS_FILE
from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.metrics_file import EVALUATIONS_FILE, METRICS_FILE
from dpo_core.contract.store import write_bytes


def forget_after(job: TrainJob, step: int) -> None:
    """Remove what a job has written down of steps after ``step``, which are about to be run again."""
    for name in (METRICS_FILE, EVALUATIONS_FILE, ANSWERS_FILE):
        drop_after(job.out_dir / name, step)


def drop_after(path: Path, step: int) -> None:
    """Forget lines of later steps, and what a power failure made of their lines. A file without such is left alone."""
    if not path.is_file():
        return
    end = 0
    with path.open("rb") as file:
        for line in file:
            try:
                if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                    break
            except (
                ValueError
            ):  # nothing below a checkpoint is unreadable: it is on the disk before the checkpoint is
                break
            end += len(line)
    if end < path.stat().st_size:
        write_bytes(path, path.read_bytes()[:end])
