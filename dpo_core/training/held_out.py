"""The held-out pairs: what a policy makes of them, and when it is asked while it trains.

An evaluation changes no weight, no moment and no random number, so a run with evaluations gives the bits of one without. One
that is cut off leaves nothing, and is made again when the run goes on. Shapes: N pairs of the set.
"""

import json
import logging
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from dpo_core.contract.config import ForwardLayout
from dpo_core.contract.errors import DataError
from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.keep_best import BestStep, best_of, check_metric, is_out_of_patience
from dpo_core.contract.loss_config import Loss
from dpo_core.contract.metric_names import EVALUATED, OF_A_SOURCE, as_evaluated, of_source
from dpo_core.contract.metrics_file import EVALUATIONS_FILE, Metrics, read_metrics
from dpo_core.contract.refs import ReferenceRef
from dpo_core.contract.warning_signs import CHOSEN, CORRELATION, FEWEST_PAIRS, Sign, signs_of
from dpo_core.data.order import steps_per_epoch
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.data.reference_cache import read_reference
from dpo_core.engine.distributed import from_main, sum_over_ranks
from dpo_core.engine.engine import Engine
from dpo_core.loss.losses import LossOutput, StepFacts
from dpo_core.loss.metrics import averages, batch_sums, source_averages, source_sums
from dpo_core.loss.objective import build_objective
from dpo_core.loss.pair_logps import PairLogps
from dpo_core.training.scores import Scoring, score_pairs
from dpo_core.training.step_guard import reference_logps
from dpo_core.training.step_loss import PairNumbers, check_numbers
from dpo_core.training.stop_request import StopRequest
from dpo_core.training.tracking import Tracking

log = logging.getLogger(__name__)
PAIRS_BETWEEN_LOOKS = 256  # for a request to stop


def held_out_reference(
    reference: ReferenceRef | None, dataset: PairDataset, accelerator: Accelerator
) -> PairLogps | None:
    """Return the cached values of all held-out pairs, [N] each; None for an objective without a reference."""
    if reference is None:
        return None
    rows = read_reference(reference, "held_out", dataset.row_keys)
    return reference_logps(rows, np.arange(len(dataset)), accelerator.device)


def pair_metrics(
    loss: Loss, dataset: PairDataset, policy: PairLogps, reference: PairLogps | None
) -> dict[str, float]:
    """Return loss, rewards, accuracies and mean log-probabilities over the held-out pairs, which the loss sees as one
    batch.

    A tie of rewards counts as half a win, so a policy that equals its reference scores 0.5.
    """
    device, numbers = policy.chosen_B.device, PairNumbers.of(dataset)
    check_numbers(loss, numbers)
    rows = np.arange(len(dataset))
    shares = numbers.shares(range(len(dataset)))
    share_B = None if shares is None else torch.from_numpy(shares).to(device)
    objective = build_objective(loss, StepFacts(chosen_tokens=_chosen_tokens(policy, share_B)))
    output = objective(policy, reference, numbers.margins_of(rows, device))
    if share_B is not None:
        output = replace(output, losses_B=share_B * output.losses_B)
    one_B, names = torch.ones_like(policy.chosen_B), dataset.source_names
    metrics = averages(batch_sums(policy, output, one_B, ties_count_half=True))
    metrics |= length_correlation(policy, output)
    if len(names) < 2:
        return metrics
    source_B = torch.from_numpy(dataset.sources).to(device)
    sums = source_sums(output, one_B, source_B, len(names), ties_count_half=True)
    return metrics | source_averages(sums, names)


def length_correlation(policy: PairLogps, output: LossOutput) -> dict[str, float]:
    """Return Pearson's correlation of a pair's reward margin with how many tokens longer its chosen answer is. Nothing of
    too few pairs, or where either is the same in all of them."""
    margin_B = (output.chosen_rewards_B - output.rejected_rewards_B).double()
    longer_B = (policy.chosen_tokens_B - policy.rejected_tokens_B).double()
    if len(margin_B) < FEWEST_PAIRS or margin_B.std() == 0 or longer_B.std() == 0:
        return {}
    return {CORRELATION: float(torch.corrcoef(torch.stack([margin_B, longer_B]))[0, 1])}


def _chosen_tokens(policy: PairLogps, share_B: torch.Tensor | None) -> float:
    """Tokens of a chosen answer, mean over the pairs, each counting its share."""
    counts_B = policy.chosen_tokens_B.double()
    return float((counts_B if share_B is None else share_B * counts_B).mean())


@dataclass
class Evaluations:
    """What is measured while one start of a run trains. Every method is called by all ranks together."""

    job: TrainJob
    engine: Engine
    layout: ForwardLayout
    dataset: PairDataset  # the held-out pairs
    reference: PairLogps | None
    steps_per_epoch: int
    total_steps: int
    stop: StopRequest
    tracking: Tracking

    def after_step(self, step: int) -> None:
        """Evaluate after ``step`` finished steps if that is due and not done, and write it down."""
        if not self._is_due(step) or any(row["step"] == step for row in self.rows):
            return
        started = time.monotonic()
        policy = self._score()
        if policy is None:
            log.info("evaluation of step %d cut off; it is made again when the run goes on", step)
            return
        metrics = {
            "step": step,
            "epoch": step / self.steps_per_epoch,
            **pair_metrics(self.job.loss, self.dataset, policy, self.reference),
            "pairs": len(self.dataset),
            "evaluation_seconds": time.monotonic() - started,
        }
        # Rank 0's on every rank: the best step and the end of patience follow from them.
        metrics = from_main(self.engine.accelerator, lambda: metrics)
        self.rows.append(metrics)
        if self.engine.accelerator.is_main_process:
            with evaluations_of(self.job).open("a") as file:
                file.write(json.dumps(metrics) + "\n")
            self.tracking.log(as_evaluated(metrics))
            log.info(
                "held out, step %d  loss %8.4f  accuracy %5.3f  margin %8.4f  (%d pairs, %.1f s)",
                step,
                metrics["loss"],
                metrics["rewards/accuracies"],
                metrics["rewards/margins"],
                len(self.dataset),
                metrics["evaluation_seconds"],
            )
            self._warn()

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
        before = self.rows[0] if self.reference is None else self._of_the_reference
        return signs_of(self.job.evaluation.warnings, before, self.rows[number])

    @cached_property
    def _of_the_reference(self) -> dict[str, float]:
        """What signs compare with: the same for every evaluation."""
        assert self.reference is not None
        return {CHOSEN: float(self.reference.per_token().chosen_B.mean())}

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

    def _score(self) -> PairLogps | None:
        """Values of all pairs in their order, [N] each; None if the run was asked to stop meanwhile."""
        accelerator, num_pairs, parts = self.engine.accelerator, len(self.dataset), []
        scoring = Scoring(self.engine.scorer, self.layout, accelerator)
        for first in range(0, num_pairs, PAIRS_BETWEEN_LOOKS):
            asked = torch.tensor(float(self.stop.received), device=accelerator.device)
            if sum_over_ranks(accelerator, asked) > 0:
                return None
            rows = np.arange(first, min(first + PAIRS_BETWEEN_LOOKS, num_pairs))
            parts.append(score_pairs(scoring, self.dataset, self.job, rows=rows))
        return PairLogps.joined(parts)


def evaluations_while_training(
    job: TrainJob,
    engine: Engine,
    layout: ForwardLayout,
    size: tuple[int, int],
    listening: tuple[StopRequest, Tracking],
) -> Evaluations | None:
    """Return what is to be measured while a run trains; None where that is off, or no pair is held out. ``size``:
    rows to train on, optimizer steps of the run."""
    dataset, keep = PairDataset.open(job.data.path, "held_out"), job.train.keep_best
    if keep and (job.evaluation.every is None or not len(dataset)):
        lacks = "has none of" if not len(dataset) else "has, but evaluation.every is empty"
        raise DataError(
            f"train.keep_best chooses by the held-out pairs, which {job.data.path} {lacks}. "
            "Raise data.held_out and set evaluation.every, or leave keep_best out."
        )
    if job.evaluation.every is None or not len(dataset):
        return None
    if keep:
        check_metric(keep, metric_names(dataset))
    num_rows, total_steps = size
    per_epoch = steps_per_epoch(num_rows, job.batch.global_pairs)
    reference = held_out_reference(job.reference, dataset, engine.accelerator)
    return Evaluations(job, engine, layout, dataset, reference, per_epoch, total_steps, *listening)


def metric_names(dataset: PairDataset) -> tuple[str, ...]:
    """Return what is measured of a set of pairs while training: of a source, where it has a pair."""
    counts = np.bincount(dataset.sources, minlength=len(dataset.source_names))
    sources = [name for name, count in zip(dataset.source_names, counts, strict=True) if count]
    several = len(dataset.source_names) > 1
    by_source = (of_source(name, metric) for name in sources for metric in OF_A_SOURCE) if several else ()
    return (*EVALUATED, *by_source)


def evaluations_of(job: TrainJob) -> Path:
    """Return where a run's evaluations are written down, one JSON object a line."""
    return job.out_dir / EVALUATIONS_FILE
