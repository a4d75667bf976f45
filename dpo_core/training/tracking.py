"""Experiment trackers of a training, through accelerate, on rank 0 alone.

``metrics.jsonl`` is the record; a tracker is a copy of it. So at each start the tracker's files are made anew and get the
whole history first: a killed and resumed run shows every step once. A W&B server keeps what it was sent; there only the
steps it lacks are sent. A tracker that fails while the training goes on is left out with a warning.
"""

import contextlib
import heapq
import json
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from accelerate.utils import ProjectConfiguration

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.metric_names import as_evaluated
from dpo_core.contract.metrics_file import Metrics
from dpo_core.contract.tracking_config import TRACKING_DIR, WANDB_ADDRESS_FILE, check_trackers
from dpo_core.training.tracker_names import TrackerNames
from dpo_core.training.tracker_starts import flat, name_of, settings_of, starts_of, tags_of

log = logging.getLogger(__name__)


def accelerator_arguments(job: TrainJob) -> dict[str, Any]:
    """Return what ``Accelerator`` is given for the job's trackers; nothing if it has none. Raises ``ConfigError``."""
    if not job.tracking.trackers:
        return {}
    check_trackers(job.tracking)
    folder = str((job.out_dir / TRACKING_DIR).absolute())
    return {
        "log_with": list(job.tracking.trackers),
        "project_config": ProjectConfiguration(folder, logging_dir=folder),
    }


class Tracking:
    """The trackers of one start of a training. On other ranks, and without trackers, every call does nothing."""

    def __init__(self, accelerator: Accelerator, job: TrainJob) -> None:
        """Start the trackers with empty files. Raises ``ConfigError`` if W&B refuses the key."""
        self.accelerator, self.job = accelerator, job
        self._first_step: dict[str, int] = {}  # steps before it are already on a server
        self._names = {name: TrackerNames(name) for name in job.tracking.trackers}
        if job.tracking.trackers and accelerator.is_main_process:
            self._start(job.tracking.wandb_mode)

    def _start(self, wandb_mode: str) -> None:
        folder = (self.job.out_dir / TRACKING_DIR).absolute()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            starts = starts_of(self.job, folder, wandb_mode)
            # Trackio greets, and DVCLive makes itself at home in the folder that it is started in.
            with contextlib.redirect_stdout(None), contextlib.chdir(folder):
                self.accelerator.init_trackers(self.job.tracking.project, init_kwargs=starts)
        except Exception as error:
            if wandb_mode == "offline" or not self.job.tracking.is_online:
                raise
            if _is_refused(error):
                raise ConfigError(
                    "Weights & Biases refuses the key or has none. Name a Prefect Secret block with it in "
                    "tracking.wandb_key_block, or set tracking.wandb_mode to offline."
                ) from error
            log.warning(
                "Weights & Biases did not answer (%s): tracked offline. `wandb sync` sends it from %s.",
                type(error).__name__,
                folder,
            )
            self._give_up_start()
            self._start("offline")
            return
        started = {tracker.name for tracker in self.accelerator.trackers}
        if left_out := set(self.job.tracking.trackers) - started:
            raise ConfigError(
                f"accelerate leaves out {', '.join(sorted(left_out))}, which tracking.trackers names: the version that "
                "is installed where the training runs is not one that it knows."
            )
        for tracker in self.accelerator.trackers:
            if tracker.name == "wandb":
                self._first_step["wandb"] = int(tracker.tracker.step)
                _tell_address(tracker.tracker.url, folder)
            _tell_settings(tracker, self.job)

    def _give_up_start(self) -> None:
        """End what has started, and W&B's service process, which would keep the run's id."""
        import wandb

        for tracker in self.accelerator.trackers:
            with contextlib.suppress(Exception):  # one of them has not started
                tracker.finish()
        self.accelerator.trackers.clear()
        wandb.teardown()

    def replay(self, metrics: Iterable[dict[str, float]], evaluations: Metrics) -> None:
        """Log the steps that earlier starts have done, and what was measured after them; both oldest first."""
        if self.accelerator.trackers:
            for line in heapq.merge(metrics, map(as_evaluated, evaluations), key=lambda line: line["step"]):
                self.log(line)

    def log(self, metrics: dict[str, float]) -> None:
        """Log one step's metrics under their names in ``metrics.jsonl``."""
        step = int(metrics["step"])
        values = {name: value for name, value in metrics.items() if name != "step"}
        self._each(
            (
                tracker
                for tracker in self.accelerator.trackers
                if step >= self._first_step.get(tracker.name, 0)
            ),
            lambda tracker: tracker.log(self._names[tracker.name].of(values), step=step),
        )

    def finish(self) -> None:
        """Write out what is buffered and end. (``Accelerator.end_training`` would also end the process group.)"""
        with contextlib.redirect_stdout(None):
            self._each(self.accelerator.trackers, lambda tracker: tracker.finish())
        self.accelerator.trackers.clear()

    def _each(self, trackers: Iterable[GeneralTracker], call: Any) -> None:
        for tracker in list(trackers):
            try:
                call(tracker)
            except Exception as error:
                log.warning(
                    "%s failed and is left out from here on; metrics.jsonl has everything: %s",
                    tracker.name,
                    error,
                )
                self.accelerator.trackers.remove(tracker)


def _tell_address(url: str | None, folder: Path) -> None:
    """Of the run's page, for the log and for the run's page in Prefect; None where it is tracked offline."""
    if url:
        (folder / WANDB_ADDRESS_FILE).write_text(url)
        log.info("Tracked on %s", url)


def _tell_settings(tracker: GeneralTracker, job: TrainJob) -> None:
    """What the training was asked to do, and what people call it, to trackers that are not told at their start."""
    settings, tracking = settings_of(job), job.tracking
    words = {name: value for name in ("group", "notes") if (value := getattr(tracking, name))}
    if tracker.name == "tensorboard":
        tracker.tracker.add_text("job", f"```\n{json.dumps(settings, indent=2)}\n```", 0)
    elif tracker.name in ("mlflow", "clearml", "comet_ml", "dvclive"):
        tracker.store_init_configuration(flat(settings))
    elif tracker.name == "aim":
        tracker.store_init_configuration(settings)
        run = tracker.tracker
        run.name, run.experiment = name_of(job), tracking.project
        run.description = tracking.notes or ""
        for tag in tags_of(job):
            run.add_tag(tag)
    if tracker.name == "comet_ml":
        tracker.tracker.log_others(words)
    elif tracker.name == "clearml" and tracking.notes:
        tracker.tracker.set_comment(tracking.notes)


def _is_refused(error: Exception) -> bool:
    """Whether W&B says no to the key, rather than nothing at all."""
    from wandb.errors import AuthenticationError, UsageError

    return isinstance(error, AuthenticationError | UsageError)
