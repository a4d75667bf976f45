"""When held-out pairs are measured while a run trains, and what becomes of what is found.

An evaluation changes no weight, no moment and no random number, so a run with evaluations gives the bits of one without. One
that is cut off leaves nothing, and is made again when the run goes on. Shapes: N pairs of a set.
"""

import json
import logging
import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from dpo_core.contract.config import ForwardLayout
from dpo_core.contract.errors import DataError
from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.keep_best import BestStep, best_of, check_metric, is_out_of_patience
from dpo_core.contract.metric_names import as_evaluated, by_set
from dpo_core.contract.metrics_file import Metrics, read_metrics
from dpo_core.contract.warning_signs import CHOSEN, Sign, signs_of
from dpo_core.data.order import steps_per_epoch
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.engine.distributed import from_main, sum_over_ranks
from dpo_core.engine.engine import Engine
from dpo_core.loss.pair_logps import PairLogps
from dpo_core.training.held_out import MeasuredPairs, evaluations_of, measured_pairs
from dpo_core.training.scores import Scoring, score_pairs
from dpo_core.training.stop_request import StopRequest
from dpo_core.training.tracking import Tracking

log = logging.getLogger(__name__)
PAIRS_BETWEEN_LOOKS = 256  # for a request to stop


@dataclass
class Evaluations:
    """What is measured while one start of a run trains. Every method is called by all ranks together."""

    job: TrainJob
    engine: Engine
    layout: ForwardLayout
    parts: tuple[MeasuredPairs, ...]  # the mixture's held-out pairs, and those of the named sets
    steps_per_epoch: int
    total_steps: int
    stop: StopRequest
    tracking: Tracking

    def after_step(self, step: int) -> None:
        """Evaluate after ``step`` finished steps if that is due and not done, and write it down."""
        if not self._is_due(step) or any(row["step"] == step for row in self.rows):
            return
        started = time.monotonic()
        found = self._measure()
        if found is None:
            log.info("evaluation of step %d cut off; it is made again when the run goes on", step)
            return
        metrics = {
            "step": step,
            "epoch": step / self.steps_per_epoch,
            **found,
            "evaluation_seconds": time.monotonic() - started,
        }
        # Rank 0's on every rank: the best step and the end of patience follow from them.
        metrics = from_main(self.engine.accelerator, lambda: metrics)
        self.rows.append(metrics)
        if self.engine.accelerator.is_main_process:
            with evaluations_of(self.job).open("a") as file:
                file.write(json.dumps(metrics) + "\n")
            self.tracking.log(as_evaluated(metrics))
            _say(metrics)
            self._warn()

    def _measure(self) -> dict[str, float] | None:
        """Metrics of all pairs; None if the run was asked to stop meanwhile."""
        metrics: dict[str, float] = {}
        for part in self.parts:
            policy = self._score(part.dataset)
            if policy is None:
                return None
            metrics |= part.metrics(self.job.loss, policy, part.reference)
            metrics |= {} if part.are_sets else {"pairs": len(part.dataset)}
        return metrics

    def _warn(self) -> None:
        """Log each sign that the newest evaluation shows and the one before did not."""
        earlier = {sign.name for sign in self._signs(len(self.rows) - 2)}
        for sign in self._signs(len(self.rows) - 1):
            if sign.name not in earlier:
                log.warning("step %d: %s", self.rows[-1]["step"], sign.words)

    @property
    def stopping(self) -> tuple[Sign, ...]:
        """Signs of the newest evaluation that are to end the run."""
        stop = self.job.evaluation.warnings.stop
        return tuple(sign for sign in self._signs(len(self.rows) - 1) if sign.name in stop)

    def _signs(self, number: int) -> tuple[Sign, ...]:
        """Those of one evaluation, compared with the reference, or with the first one where there is no reference."""
        if not 0 <= number < len(self.rows):
            return ()
        before = self._of_the_reference or self.rows[0]
        return signs_of(self.job.evaluation.warnings, before, self.rows[number])

    @cached_property
    def _of_the_reference(self) -> dict[str, float]:
        """What signs, which are told of the mixture's own pairs, compare with: the same for every evaluation."""
        reference = None if self.parts[0].are_sets else self.parts[0].reference
        return {CHOSEN: float(reference.per_token().chosen_B.mean())} if reference else {}

    def _is_due(self, step: int) -> bool:
        every = self.job.evaluation.every
        interval = self.steps_per_epoch if every == "epoch" else every
        return step > 0 and interval is not None and (step % interval == 0 or step == self.total_steps)

    @cached_property
    def rows(self) -> Metrics:
        """Those of earlier starts, as rank 0 finds them written, and of this one; the same on every rank."""
        return from_main(self.engine.accelerator, lambda: read_metrics(evaluations_of(self.job)))

    @property
    def best(self) -> BestStep | None:
        """The best evaluation so far, where one is to be kept."""
        keep = self.job.train.keep_best
        return best_of(keep, self.rows, self.total_steps) if keep else None

    @property
    def are_enough(self) -> bool:
        """Whether training is to stop, as so many of them were no better than one before."""
        keep = self.job.train.keep_best
        return keep is not None and is_out_of_patience(keep, self.rows)

    def _score(self, dataset: PairDataset) -> PairLogps | None:
        """Values of all pairs in their order, [N] each; None if the run was asked to stop meanwhile."""
        accelerator, num_pairs, parts = self.engine.accelerator, len(dataset), []
        scoring = Scoring(self.engine.scorer, self.layout, accelerator)
        for first in range(0, num_pairs, PAIRS_BETWEEN_LOOKS):
            asked = torch.tensor(float(self.stop.received), device=accelerator.device)
            if sum_over_ranks(accelerator, asked) > 0:
                return None
            rows = np.arange(first, min(first + PAIRS_BETWEEN_LOOKS, num_pairs))
            parts.append(score_pairs(scoring, dataset, self.job, rows=rows))
        return PairLogps.joined(parts)


def _say(metrics: dict[str, float]) -> None:
    """A line in the log for the mixture's own pairs, and one for each set."""
    own = {"": metrics} if "pairs" in metrics else {}
    for name, found in (own | by_set(metrics)).items():
        log.info(
            "held out%s, step %d  loss %8.4f  accuracy %5.3f  margin %8.4f  (%d pairs, %.1f s)",
            f" ({name})" if name else "",
            metrics["step"],
            found["loss"],
            found["rewards/accuracies"],
            found["rewards/margins"],
            found["pairs"],
            metrics["evaluation_seconds"],
        )


def evaluations_while_training(
    job: TrainJob,
    engine: Engine,
    layout: ForwardLayout,
    size: tuple[int, int],
    listening: tuple[StopRequest, Tracking],
) -> Evaluations | None:
    """Return what is to be measured while a run trains; None where that is off, or no pair is held out. ``size``:
    rows to train on, optimizer steps of the run."""
    parts, keep = measured_pairs(job, engine.accelerator), job.train.keep_best
    if keep and (job.evaluation.every is None or not parts):
        lacks = "has none of" if not parts else "has, but evaluation.every is empty"
        raise DataError(
            f"train.keep_best chooses by the held-out pairs, which {job.data.path} {lacks}. "
            "Raise data.held_out and set evaluation.every, or leave keep_best out."
        )
    if job.evaluation.every is None or not parts:
        return None
    if keep:
        check_metric(keep, [name for part in parts for name in part.metric_names])
    num_rows, total_steps = size
    per_epoch = steps_per_epoch(num_rows, job.batch.global_pairs)
    return Evaluations(job, engine, layout, parts, per_epoch, total_steps, *listening)
