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

from dpo_core.contract.answers_file import ANSWERS_FILE, AnswersOfStep, keep_answers
from dpo_core.contract.config import ForwardLayout
from dpo_core.contract.errors import DataError
from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.keep_best import BestStep, best_of, check_metric, is_out_of_patience
from dpo_core.contract.metric_names import as_evaluated, by_set
from dpo_core.contract.metrics_file import METRICS_FILE, Metrics, each_step, read_metrics
from dpo_core.contract.store import write_bytes, write_json
from dpo_core.contract.warning_signs import CHOSEN, KL, WORDS, Sign
from dpo_core.data.order import steps_per_epoch
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.engine.distributed import data_rank, from_main, sum_over_ranks
from dpo_core.engine.engine import Engine
from dpo_core.loss.pair_logps import PairLogps
from dpo_core.training.answers import CutOff
from dpo_core.training.earlier_evaluations import (
    Measured,
    comparable,
    is_baseline,
    measured_file,
    read_measured,
    whole_at,
)
from dpo_core.training.held_out import MeasuredPairs, evaluations_of, measured_pairs
from dpo_core.training.policy_answers import PolicyAnswers, policy_answers
from dpo_core.training.scores import Scoring, score_pairs
from dpo_core.training.signs_in_training import SignsInTraining
from dpo_core.training.since_start import changed, keep_start, read_start, verdicts_of
from dpo_core.training.start_weights import AsReference
from dpo_core.training.stop_request import StopRequest
from dpo_core.training.tracking import Tracking

log = logging.getLogger(__name__)
PAIRS_BETWEEN_LOOKS = 256  # of each share, for a request to stop


@dataclass
class Evaluations:
    """What is measured while one start of a run trains. Every method is called by all ranks together."""

    job: TrainJob
    engine: Engine
    layout: ForwardLayout
    parts: tuple[MeasuredPairs, ...]  # the mixture's held-out pairs, and those of the named sets
    answers: PolicyAnswers | None
    steps_per_epoch: int
    total_steps: int
    stop: StopRequest
    tracking: Tracking
    trained_seconds: float = 0.0  # since the last evaluation, as this rank knows it
    is_cut_off: bool = False  # the one that was due last, on all ranks
    at_start: dict[str, str] | None = None  # which instructions were kept before the first step

    def after_step(self, step: int, seconds: float = 0.0) -> None:
        """Evaluate after ``step`` finished steps, of which the last took ``seconds``, if that is due and not done, and write
        it down."""
        self.trained_seconds += seconds
        if not self._is_due(step) or any(row["step"] == step for row in self.rows):
            return
        started = time.monotonic()
        try:
            found, samples = self._measure(step)
        except CutOff:
            self.is_cut_off = True
            log.info("evaluation of step %d cut off; it is made again when the run goes on", step)
            return
        self.is_cut_off = False
        metrics = self._row(step, found, started)
        self.rows.append(metrics)
        self.trained_seconds = 0.0
        if self.engine.accelerator.is_main_process:
            self._keep(samples)  # before the line, without which all is made again
            with evaluations_of(self.job).open("a") as file:
                file.write(json.dumps(metrics) + "\n")
            self.tracking.log(as_evaluated(metrics))
            _say(metrics)
            for sign in self._signs.new(self.rows):
                log.warning("step %d: %s", step, sign.words)

    def go_on_from(self, step: int) -> None:
        """Look after what earlier starts have measured, before the checkpoint of ``step`` is loaded and while the policy is
        its start still: what was measured of other prompts or pairs than now is left out, and the start's answers, which
        signs compare with, are made where they lack.
        """
        accelerator, prompts = self.engine.accelerator, self.answers.prompts if self.answers else None
        now = Measured.of(self.job, self.parts, prompts)
        before = from_main(accelerator, lambda: read_measured(self.job)) or now
        pairs, answers = now.changed_since(before)
        rows = comparable(self.rows, pairs, answers)
        if pairs or answers:
            names = ", ".join(sorted(name or "the mixture" for name in pairs | answers))
            log.warning("evaluations of before asked otherwise (%s): their figures are left out", names)
        samples = None
        self.at_start = from_main(accelerator, lambda: read_start(self.job, now.answers))
        if step in (0, self.total_steps):
            rows = whole_at(step, rows, self.rows, prompts)
        has_start = bool(rows) and is_baseline(rows[0], prompts) and self.at_start is not None
        if step == 0 and self.answers and not has_start:
            rows = [row for row in rows if row["step"]]
        if step and self.answers and not has_start:
            log.info("the start's answers are made again, as the later ones are compared with them")
            started = time.monotonic()
            try:
                found, samples = self._answered(self.answers, 0)
            except CutOff:
                self.stop.stop_now()
            rows = [self._row(0, found, started), *(row for row in rows if row["step"])]
        if accelerator.is_main_process:
            if answers:
                (self.job.out_dir / ANSWERS_FILE).unlink(missing_ok=True)
            self._keep(samples)
            if rows != self.rows:
                lines = "".join(f"{json.dumps(row)}\n" for row in rows)
                write_bytes(evaluations_of(self.job), lines.encode())
            write_json(measured_file(self.job), now.with_earlier(before))
        self.rows[:] = rows
        self.trained_seconds = seconds_since(self.job, rows)

    def _row(self, step: int, found: dict[str, float], started: float) -> dict[str, float]:
        """Rank 0's figures on every rank: the best step and the end of patience follow from them."""
        metrics = {
            "step": step,
            "epoch": step / self.steps_per_epoch,
            **found,
            "evaluation_seconds": time.monotonic() - started,
        }
        return from_main(self.engine.accelerator, lambda: metrics)

    def _keep(self, samples: AnswersOfStep | None) -> None:
        if samples and samples.answers:
            keep_answers(self.job.out_dir / ANSWERS_FILE, samples)

    def _measure(self, step: int) -> tuple[dict[str, float], AnswersOfStep | None]:
        """Metrics of answers and of all pairs, and a few answers. Raises ``CutOff``, on all ranks, if the run was asked to
        stop meanwhile. Answers come first: what ZeRO notes of the order in which layers are called begins anew with the next
        whole forward."""
        metrics: dict[str, float] = {}
        samples = None
        if self.answers and self._asks_prompts(step):
            metrics, samples = self._answered(self.answers, step)
        for part in self.parts if step else ():
            metrics |= part.metrics(self.job.loss, self._score(part.dataset), part.reference)
            metrics |= {} if part.are_sets else {"pairs": len(part.dataset)}
        return metrics, samples

    def _answered(self, answers: PolicyAnswers, step: int) -> tuple[dict[str, float], AnswersOfStep]:
        """Answers by themselves, and beside the start's, which are written down before their line is. Raises ``CutOff``."""
        metrics, greedy = answers.measured()
        kept = verdicts_of(answers.prompts, greedy)
        if step:
            metrics |= changed(self.at_start or {}, kept)
        else:
            self.at_start = kept
            if self.engine.accelerator.is_main_process:
                keep_start(self.job, Measured.of(self.job, self.parts, answers.prompts).answers, kept)
        return metrics, answers.told(step, greedy)

    def _asks_prompts(self, step: int) -> bool:
        """Before the first step, which signs compare with; then at every N-th evaluation and the last one."""
        every, number = self.job.evaluation.answers_every, 1 + sum(row["step"] > 0 for row in self.rows)
        return every is not None and (step in (0, self.total_steps) or number % every == 0)

    @property
    def stopping(self) -> tuple[Sign, ...]:
        """Signs of the newest evaluation that are to end the run."""
        return self._signs.stopping(self.rows)

    @cached_property
    def _signs(self) -> SignsInTraining:
        reference = None if self.parts[0].are_sets else self.parts[0].reference
        chosen = {CHOSEN: float(reference.per_token().chosen_B.mean())} if reference else {}
        return SignsInTraining(self.job.evaluation.warnings, chosen, self.answers is not None)

    def _is_old(self) -> bool:
        """Whether the last evaluation is, by rank 0's clock: by clocks of their own ranks would not agree."""
        minutes, accelerator = self.job.evaluation.every_minutes, self.engine.accelerator
        if minutes is None:
            return False
        old = accelerator.is_main_process and self.trained_seconds >= 60 * minutes
        return bool(sum_over_ranks(accelerator, torch.tensor(float(old), device=accelerator.device)) > 0)

    def _is_due(self, step: int) -> bool:
        every = self.job.evaluation.every
        interval = self.steps_per_epoch if every == "epoch" else every
        if step == 0:
            return self.answers is not None
        at_steps = interval is not None and step % interval == 0
        return self._is_old() or at_steps or step == self.total_steps

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

    def _score(self, dataset: PairDataset) -> PairLogps:
        """Values of all pairs in their order, [N] each. Raises ``CutOff``."""
        accelerator, num_pairs, parts = self.engine.accelerator, len(dataset), []
        scoring = Scoring(self.engine.scorer, self.layout, accelerator)
        at_once = PAIRS_BETWEEN_LOOKS * data_rank(accelerator)[1]
        for first in range(0, num_pairs, at_once):
            asked = torch.tensor(float(self.stop.received), device=accelerator.device)
            if sum_over_ranks(accelerator, asked) > 0:
                raise CutOff
            rows = np.arange(first, min(first + at_once, num_pairs))
            parts.append(score_pairs(scoring, dataset, self.job, rows=rows))
        return PairLogps.joined(parts)


def _say(metrics: dict[str, float]) -> None:
    """Lines in the log for the mixture's own pairs and answers, and for each set's."""
    for name, found in ({"": metrics} | by_set(metrics)).items():
        if WORDS in found:
            figures = {"kept": "checker/pass_rate", "KL a token": KL}
            said = [f"{word} {found[metric]:.4f}" for word, metric in figures.items() if metric in found]
            log.info(
                "answers%s, step %d  %s",
                f" ({name})" if name else "",
                metrics["step"],
                "  ".join([f"words {found[WORDS]:.1f}", *said]),
            )
        if "loss" not in found:
            continue
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
    beside: tuple[StopRequest, Tracking, AsReference | None],
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
    if not job.evaluation.is_while_training or not parts:
        return None
    stop, tracking, as_reference = beside
    answers = policy_answers(job, engine, layout, parts, as_reference, stop)
    if keep:
        of_pairs = (name for part in parts for name in part.metric_names)
        check_metric(keep, (*of_pairs, *(answers.metric_names if answers else ())))
    num_rows, total_steps = size
    per_epoch = steps_per_epoch(num_rows, job.batch.global_pairs)
    return Evaluations(job, engine, layout, parts, answers, per_epoch, total_steps, stop, tracking)


def seconds_since(job: TrainJob, evaluations: Metrics) -> float:
    """Return what the steps behind the last evaluation took, as earlier starts have written it down: an evaluation that was
    due by the clock and cut off is due again where the run goes on."""
    last = max((row["step"] for row in evaluations), default=0)
    steps = each_step(job.out_dir / METRICS_FILE)
    return sum(one.get("step_seconds", 0.0) for one in steps if one["step"] > last)
