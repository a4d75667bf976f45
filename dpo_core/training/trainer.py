"""The DPO loop. Every variant is chosen in set-up (``dpo_core.steps.train``) or is an engine's; the loop itself has none.

The state between two optimizer steps is (weights, optimizer moments, step number, sum of rewards so far) and nothing else:
data order and learning rate are functions of the step, dropout is off. So a run that is killed and resumed gives the same
bits.
"""

import json
import logging
import time
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from dpo_core.contract.config import ForwardLayout
from dpo_core.contract.errors import NonFinite, PolicyDegraded, Preempted
from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.keep_best import BestStep
from dpo_core.contract.metrics_file import METRICS_FILE
from dpo_core.contract.progress import Progress
from dpo_core.data.order import cut_for_rank, forward_tokens, real_tokens, step_rows, steps_per_epoch
from dpo_core.data.pair_batch import PairBatch, collate, padding_share, to_device
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.engine.checkpoint import RunState
from dpo_core.engine.distributed import data_rank, max_over_ranks, sum_over_shares
from dpo_core.engine.engine import Engine
from dpo_core.engine.optim import learning_rate_at
from dpo_core.loss.metrics import (
    OF_A_PAIR,
    SUMMED,
    averages,
    batch_sums,
    peak_memory_gib,
    reserved_memory_gib,
    source_averages,
    source_sums,
)
from dpo_core.model.forward import memory_for, pair_logps
from dpo_core.training.fit_check import Cut
from dpo_core.training.saving import Saving
from dpo_core.training.step_loss import MicrobatchLoss, StepLoss
from dpo_core.training.throughput import CHECKPOINT, DATA, StepClock, Work
from dpo_core.training.tracking import Tracking
from dpo_core.training.while_training import Evaluations

log = logging.getLogger(__name__)


@dataclass
class Trainer:
    """Everything the loop touches. Shapes: B pairs of a microbatch."""

    job: TrainJob
    engine: Engine
    dataset: PairDataset
    step_loss: StepLoss
    layout: ForwardLayout
    cut: Cut
    progress: Progress
    state: RunState
    total_steps: int
    saving: Saving
    router_weight: float  # of the routers' load-balancing loss; 0 where there is none
    tracking: Tracking  # experiment trackers
    evaluations: Evaluations | None  # None: the held-out pairs are not measured while training
    checks: dict[str, float]  # figures and seconds of what was checked before the first step
    last_metrics: dict[str, float] = field(default_factory=dict)

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """The sources whose metrics are told apart; none where there is one alone."""
        names = self.dataset.source_names
        return names if len(names) > 1 else ()

    @cached_property
    def work(self) -> Work:
        """What a step computes."""
        return Work.of(
            self.engine.scorer.model,
            self.job.train.precision,
            self.accelerator.device,
            self.accelerator.num_processes,
        )

    @property
    def accelerator(self) -> Accelerator:
        return self.engine.accelerator

    def train(self) -> None:
        """Run from ``state.step`` to the end."""
        clock = StepClock(self.accelerator.device)
        if not self.evaluate():  # what a request to stop cut off before, and has again
            raise Preempted(
                f"Asked to stop during the evaluation of step {self.state.step}, before another step: nothing is lost. "
                "Start again to make it."
            )
        while (step := self.state.step) < self.last_step:
            started = time.monotonic()
            with clock.part(DATA):
                rows, batches = self.step_batches(step)
            losses = self.step_loss.begin(self.engine, rows, batches, self.state.mean_reward)
            size = len(SUMMED) + OF_A_PAIR * len(self.sources)
            sums = torch.zeros(size, dtype=torch.float64, device=self.accelerator.device)
            for number, batch in enumerate(batches):
                with self.engine.accumulate(last=number == len(batches) - 1):
                    sums += self.forward_backward(batch, losses, rows)
            with clock.exchange():
                sums = sum_over_shares(self.accelerator, sums)
            learning_rate = learning_rate_at(step, self.total_steps, self.job.optim)
            self.saving.before_update()
            grad_norm = self.engine.step(learning_rate)
            self.check_finite(step, rows, sums, grad_norm)
            self.record(
                step,
                rows,
                sums,
                {
                    "grad_norm": grad_norm,
                    "learning_rate": learning_rate,
                    "tokens/padding_share": padding_share(batches),
                    **clock.take(),
                    CHECKPOINT: self.saving.take_waited(),
                },
                started,
            )
            self.state = self.state.model_copy(update={"step": step + 1})
            is_evaluated = self.evaluate()
            self.saving.after_step(self.state, is_end=is_evaluated and self.state.step == self.last_step)
        self.saving.finish()

    @property
    def last_step(self) -> int:
        """The planned one, or this one where the evaluations say that it is enough."""
        return self.state.step if self.evaluations and self.evaluations.are_enough else self.total_steps

    @property
    def best(self) -> BestStep | None:
        """The best evaluation so far, where one is to be kept."""
        return self.evaluations.best if self.evaluations else None

    def evaluate(self) -> bool:
        """Measure the held-out pairs, where that is due, and note which step is the best by then. Returns whether nothing
        that is due is missing: False where the run was asked to stop meanwhile."""
        if self.evaluations:
            self.evaluations.after_step(self.state.step, self.last_metrics.get("step_seconds", 0.0))
            if signs := self.evaluations.stopping:
                self.saving.finish()
                raise PolicyDegraded(
                    f"After step {self.state.step}: {' '.join(sign.words for sign in signs)}",
                    f"{self.kept} To go on all the same, start the run again without "
                    f"{', '.join(sign.name for sign in signs)} in evaluation.warnings.stop.",
                )
        if best := self.best:
            self.state = self.state.model_copy(update={"best_step": best.step})
        return not (self.evaluations and self.evaluations.is_cut_off)

    @cached_property
    def pair_tokens(self) -> np.ndarray:
        """Tokens that each row occupies in a forward, int [N]."""
        return forward_tokens(self.dataset.lengths, self.dataset.prefix_lengths, self.layout)

    def step_batches(self, step: int) -> tuple[list[int], list[PairBatch]]:
        """Return the global batch's row numbers and this rank's microbatches of them."""
        rows = step_rows(step, len(self.dataset), self.job.batch.global_pairs, self.job.train.seed)
        cuts = cut_for_rank(
            rows,
            self.pair_tokens[rows],
            self.cut.plan,
            self.cut.tokens,
            data_rank(self.accelerator)[0],
            self.layout,
        )
        return rows.tolist(), [
            collate([self.dataset[row] for row in cut.rows], cut.rows, self.layout, cut.weights)
            for cut in cuts
        ]

    def forward_backward(self, batch: PairBatch, losses: MicrobatchLoss, rows: list[int]) -> Tensor:
        """Add a microbatch's share to the gradient; every pair of the global batch weighs the same. -> metric sums"""
        router_share = self.share_of_tokens(batch, rows)
        batch = batch.to(self.accelerator.device)
        with memory_for(batch):
            scores = self.engine.scores(batch)
            policy = pair_logps(scores, batch.tokens_2B)
            terms_B, output = losses(policy, batch)
            router_loss = scores.router_loss * router_share
            self.engine.backward(
                (terms_B * batch.weight_B).sum() / len(rows) + self.router_weight * router_loss
            )
        sums = batch_sums(policy, output, batch.weight_B, router_loss=router_loss)
        if not self.sources:
            return sums
        source_B = to_device(torch.from_numpy(self.dataset.sources[batch.row_B.numpy()]), sums.device)
        by_source = source_sums(output, batch.weight_B, source_B, len(self.sources))
        return torch.cat([sums, by_source.flatten()])

    def share_of_tokens(self, batch: PairBatch, rows: list[int]) -> float:
        """Return the microbatch's part of the global batch's tokens, padding left out; 0 for a filler."""
        mine, every = (
            real_tokens(self.dataset.lengths[some], self.dataset.prefix_lengths[some], self.layout).sum()
            for some in (batch.row_B.numpy()[batch.weight_B.numpy() > 0], rows)
        )
        return float(mine / every)

    @property
    def kept(self) -> str:
        """Say which checkpoint is there, for an error that ends the training."""
        saved = self.saving.saved_step
        return f"The checkpoint of step {saved} is good." if saved else "No checkpoint was written before it."

    def check_finite(self, step: int, rows: list[int], sums: Tensor, grad_norm: float) -> None:
        """Raise ``NonFinite`` naming the batch's rows if loss or gradient is not a number."""
        if not (torch.isfinite(sums).all() and torch.isfinite(torch.tensor(grad_norm))):
            self.saving.finish()
            raise NonFinite(
                f"Step {step + 1}: loss {float(sums[0]) / len(rows):g}, gradient norm {grad_norm:g}. Rows of "
                f"the batch: {rows}. {self.kept} Lower optim.learning_rate or loss.beta, or use train.precision "
                "fp32."
            )

    def speed_of(self, rows: list[int], trained_tokens: float, seconds: float) -> dict[str, float]:
        """Return a step's metrics of tokens and operations a second."""
        lengths = self.dataset.lengths[rows]
        operations = self.work.operations(lengths, self.dataset.prefix_lengths[rows], trained_tokens)
        return self.work.figures(int(lengths.sum()), operations, seconds)

    def record(
        self, step: int, rows: list[int], sums: Tensor, extra: dict[str, float], started: float
    ) -> None:
        """Append the step's metrics to ``metrics.jsonl``, print a line, advance the progress."""
        seconds = time.monotonic() - started
        tokens = int(self.dataset.lengths[rows].sum())
        metrics = {
            "step": step + 1,
            "epoch": (step + 1) / steps_per_epoch(len(self.dataset), self.job.batch.global_pairs),
            **averages(sums[: len(SUMMED)]),
            **source_averages(sums[len(SUMMED) :].view(-1, OF_A_PAIR), self.sources),
            **extra,
            "pairs": len(rows),
            "pairs_per_second": len(rows) / seconds,
            "step_seconds": seconds,
            "tokens/total": self.state.num_tokens + tokens,
            # The update's norm has been read: ranks and their cards are in step here.
            "memory/peak_gib": max_over_ranks(self.accelerator, peak_memory_gib()),
        }
        if (reserved := reserved_memory_gib()) is not None:
            metrics["memory/reserved_gib"] = max_over_ranks(self.accelerator, reserved)
        metrics |= self.speed_of(rows, metrics["trained_tokens_per_pair"] * len(rows), seconds)
        first, self.last_metrics = not self.last_metrics, metrics
        self.state = self.state.model_copy(
            update={
                "first_metrics": self.state.first_metrics or metrics,
                "num_tokens": self.state.num_tokens + tokens,
                "num_rewards": self.state.num_rewards + 2 * len(rows),
                "reward_sum": self.state.reward_sum + 2 * len(rows) * metrics["rewards/average"],
            }
        )
        if self.accelerator.is_main_process:
            with (self.job.out_dir / METRICS_FILE).open("a") as file:
                of_this_start = (
                    {f"checks/{name}": value for name, value in self.checks.items()} if first else {}
                )
                file.write(json.dumps(metrics | of_this_start) + "\n")
            self.tracking.log(metrics)
            log.info(
                "step %5d/%d  loss %8.4f  accuracy %5.3f  margin %8.4f  grad_norm %8.3f  lr %9.2e  %6.2f pairs/s  "
                "%5.1f GiB",
                step + 1,
                self.total_steps,
                metrics["loss"],
                metrics["rewards/accuracies"],
                metrics["rewards/margins"],
                extra["grad_norm"],
                extra["learning_rate"],
                metrics["pairs_per_second"],
                metrics["memory/peak_gib"],
            )
        self.progress.advance(
            1,
            {
                name: metrics[name]
                for name in ("loss", "rewards/accuracies", "rewards/margins", "pairs_per_second")
            },
        )
