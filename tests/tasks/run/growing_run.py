"""A run in the middle of its training, whose files a test lets grow as a trainer would."""

import json
import math
import os
from pathlib import Path

from dpo_core.contract.errors import StepCrashed
from dpo_core.contract.job import LOG_FILE
from dpo_core.contract.metrics_file import EVALUATIONS_FILE, METRICS_FILE
from dpo_core.contract.progress import MARK, ProgressEvent
from dpo_core.contract.store import write_json
from tasks.launch.own_folder import make_own_folder
from tasks.run.folder import RUN_FILE, read_run
from tests.tasks.report.made_run import make_run

TOTAL = 400


class GrowingRun:
    """``folder`` is the run's, ``train`` that of its training. The run belongs to this process, so it is alive."""

    def __init__(self, store: Path) -> None:
        self.folder = make_run(store, steps=8, fails=StepCrashed("x"))
        record = read_run(self.folder)
        self.train = Path(record.jobs[-1].folder)
        self.log = make_own_folder(self.train) / LOG_FILE
        (self.train / "log.txt").unlink()
        self.log.write_text("\n# 2026-01-01 00:00:00 accelerate launch ...\n")
        self.at = 8
        tasks = [
            *record.tasks[:-1],
            record.tasks[-1].model_copy(update={"state": "running", "seconds": None}),
        ]
        jobs = [*record.jobs[:-1], record.jobs[-1].model_copy(update={"seconds": None})]
        self.change(
            state="running", ended=None, seconds=None, error=None, error_kind=None, tasks=tasks, jobs=jobs
        )
        self.change(pid=os.getpid())

    def change(self, **values: object) -> None:
        """Set what ``run.json`` says."""
        write_json(self.folder / RUN_FILE, read_run(self.folder).model_copy(update=values))

    def train_to(self, step: int, rate: float = 2.0) -> None:
        """Leave metrics and progress up to ``step``."""
        with (self.train / METRICS_FILE).open("a") as file:
            for done in range(self.at + 1, step + 1):
                share = done / TOTAL
                loss = 0.69 - 0.3 * share + math.sin(done) / 50
                metrics = {
                    "step": done,
                    "loss": loss,
                    "rewards/accuracies": 0.5 + share / 3,
                    "rewards/margins": share,
                }
                file.write(json.dumps(metrics) + "\n")
        self.at = step
        event = ProgressEvent(step="train", done=step, total=TOTAL, unit="steps", rate=rate, phase="train")
        self.say(json.dumps({MARK: "progress", **event.model_dump()}))

    def evaluate(self, **metrics: float) -> None:
        """Leave an evaluation of the held-out pairs."""
        with (self.train / EVALUATIONS_FILE).open("a") as file:
            file.write(json.dumps({"step": self.at, **metrics}) + "\n")

    def say(self, line: str) -> None:
        """Leave a line in the step's log."""
        with self.log.open("a") as file:
            file.write(line + "\n")
