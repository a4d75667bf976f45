"""The checkpoint of the best evaluation: looked after when a run goes on, and taken when it is over."""

import logging
from pathlib import Path

from accelerate import Accelerator

from dpo_core.contract.errors import StoreError
from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.keep_best import BestStep, best_of
from dpo_core.contract.metrics_file import read_metrics
from dpo_core.engine.checkpoint import RunState, checkpoint_folder, newest_checkpoint, whole_checkpoint
from dpo_core.engine.distributed import from_main
from dpo_core.training.held_out import evaluations_of
from dpo_core.training.saving import checkpoints_of
from dpo_core.training.trainer import Trainer

log = logging.getLogger(__name__)


def checkpoint_to_resume(job: TrainJob, accelerator: Accelerator) -> tuple[Path, RunState] | None:
    """Return the newest whole checkpoint. Where the best is to be kept and its own is gone or damaged, the newest one from
    which that is made again; None: the run begins anew. All ranks look together."""
    root = checkpoints_of(job)
    found = newest_checkpoint(root, job.fingerprint, accelerator)
    while found and (best := _best_until(job, found[1].step, accelerator)) and best.step < found[1].step:
        if whole_checkpoint(checkpoint_folder(root, best.step), job.fingerprint, accelerator):
            return found
        log.warning(
            "without the checkpoint of step %d, the best so far, the run goes on from before it", best.step
        )
        found = newest_checkpoint(root, job.fingerprint, accelerator, before=best.step)
    return found


def _best_until(job: TrainJob, step: int, accelerator: Accelerator) -> BestStep | None:
    """The best evaluation of the steps that the checkpoint of ``step`` holds."""
    if not (keep := job.train.keep_best):
        return None
    rows = from_main(accelerator, lambda: read_metrics(evaluations_of(job)))
    return best_of(keep, [row for row in rows if row["step"] <= step], planned_steps=step)


def take_best(trainer: Trainer) -> BestStep | None:
    """Give the policy the weights of the best step after training, where it is to be kept. Called by all ranks together.

    Raises ``StoreError`` if its checkpoint was damaged meanwhile.
    """
    job, best = trainer.job, trainer.best
    if job.train.keep_best is None:
        return None
    if best is None:
        log.warning(
            "no evaluation found a number for %s: the last step's weights are taken",
            job.train.keep_best.metric,
        )
        return None
    log.info("taken: %s", best.in_words)
    if best.step == trainer.state.step:
        return best
    folder = checkpoint_folder(checkpoints_of(job), best.step)
    if not whole_checkpoint(folder, job.fingerprint, trainer.accelerator):
        raise StoreError(
            f"{folder}, the checkpoint of the best evaluation, is gone or damaged.",
            "Start the run again: it goes on from before that step, or from the beginning.",
        )
    trainer.engine.load(folder)
    return best
