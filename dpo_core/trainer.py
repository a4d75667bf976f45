"""Step ``train``: the DPO loop. Every variant is chosen in set-up; the loop itself has none.

The state between two optimizer steps is (weights, optimizer moments, step number) and nothing else: data order and
learning rate are functions of the step, dropout is off. So a run that is killed and resumed gives the same bits.
"""

import contextlib
import json
import logging
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dpo_core.checkpoint import (
    MODEL_FILE,
    RunState,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    save_weights,
)
from dpo_core.config import ForwardLayout
from dpo_core.data.order import cut_for_rank, forward_tokens, num_steps, step_rows
from dpo_core.data.pair_batch import PairBatch, collate
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.distributed import check_world_size, start_accelerator, sum_over_ranks
from dpo_core.errors import DataError, NonFinite, OutOfMemory, Preempted
from dpo_core.jobs import TrainJob
from dpo_core.losses import LOSSES
from dpo_core.metrics import SUMMED, averages, batch_sums, peak_memory_gib
from dpo_core.model.forward import PairScorer, choose_layout, pair_logps, probe_pairs
from dpo_core.model.load import load_model
from dpo_core.optim import build_optimizer, learning_rate_at, set_learning_rate
from dpo_core.progress import Progress
from dpo_core.reference_cache import ReferenceRows, read_reference
from dpo_core.results import TrainResult
from dpo_core.step_guard import check_step_zero, reference_logps
from dpo_core.store import fingerprint, write_bytes

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


@dataclass
class StopRequest:
    """Set by SIGTERM: finish the step, write a checkpoint, end as ``preempted``."""

    received: bool = False

    def listen(self) -> None:
        signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, *_: object) -> None:
        self.received = True


@dataclass
class Trainer:
    """Everything the loop touches. Shapes: B pairs of a microbatch."""

    job: TrainJob
    accelerator: Accelerator
    dataset: PairDataset
    reference: ReferenceRows | None
    scorer: PairScorer
    distributed_scorer: nn.Module
    optimizer: torch.optim.Optimizer
    layout: ForwardLayout
    progress: Progress
    state: RunState
    total_steps: int
    stop: StopRequest
    last_metrics: dict[str, float] = field(default_factory=dict)

    def train(self) -> None:
        """Run from ``state.step`` to the end."""
        for step in range(self.state.step, self.total_steps):
            started = time.monotonic()
            learning_rate = learning_rate_at(step, self.total_steps, self.job.optim)
            set_learning_rate(self.optimizer, learning_rate)
            rows, batches = self.step_batches(step)
            sums = torch.zeros(len(SUMMED), dtype=torch.float64, device=self.accelerator.device)
            for number, batch in enumerate(batches):
                with self.gradients_synchronised(last=number == len(batches) - 1):
                    sums += self.forward_backward(batch, len(rows))
            sums = sum_over_ranks(self.accelerator, sums)
            grad_norm = self.clip_gradients()
            self.check_finite(step, rows, sums, grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.record(step, rows, sums, {"grad_norm": grad_norm, "learning_rate": learning_rate}, started)
            self.save_if_due(step + 1)

    def step_batches(self, step: int) -> tuple[list[int], list[PairBatch]]:
        """The global batch's row numbers and this rank's microbatches of them."""
        rows = step_rows(step, len(self.dataset), self.job.batch.global_pairs, self.job.train.seed)
        lengths = forward_tokens(self.dataset.lengths[rows], self.dataset.prefix_lengths[rows], self.layout)
        cuts = cut_for_rank(rows, lengths, self.job.batch, self.job.train.tokens_per_forward,
                            self.accelerator.process_index)
        return rows.tolist(), [collate([self.dataset[row] for row in cut.rows], cut.rows, self.layout, cut.weights)
                               for cut in cuts]

    def gradients_synchronised(self, last: bool) -> contextlib.AbstractContextManager:
        """Ranks exchange gradients in the last microbatch of a step only."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.distributed_scorer)

    def forward_backward(self, batch: PairBatch, global_pairs: int) -> Tensor:
        """Add a microbatch's share to the gradient; every pair of the global batch weighs the same. -> metric sums"""
        batch = batch.to(self.accelerator.device)
        try:
            policy = pair_logps(self.distributed_scorer(batch), batch.tokens_2B)
            reference = self.reference and reference_logps(self.reference, batch.row_B.cpu().numpy(),
                                                           self.accelerator.device)
            output = LOSSES[self.job.loss.name](policy, reference, self.job.loss)
            # DDP averages gradients over ranks, so a rank's sum is scaled up by the number of ranks.
            loss = (output.losses_B * batch.weight_B).sum() * (self.accelerator.num_processes / global_pairs)
            self.accelerator.backward(loss)
        except RuntimeError as error:
            raise _explained(error, batch) from error
        return batch_sums(policy, output, batch.weight_B)

    def clip_gradients(self) -> float:
        """Clip to the configured norm; returns the norm before clipping."""
        parameters = self.scorer.parameters()
        return float(nn.utils.clip_grad_norm_(parameters, self.job.optim.max_grad_norm, foreach=True))

    def check_finite(self, step: int, rows: list[int], sums: Tensor, grad_norm: float) -> None:
        """Raise ``NonFinite`` naming the batch's rows if loss or gradient is not a number."""
        if not (torch.isfinite(sums).all() and torch.isfinite(torch.tensor(grad_norm))):
            raise NonFinite(f"Step {step + 1}: loss {float(sums[0]) / len(rows):g}, gradient norm {grad_norm:g}. Rows of "
                            f"the batch: {rows}. The last checkpoint is good. Lower optim.learning_rate or loss.beta, or "
                            "use train.precision fp32.")

    def record(self, step: int, rows: list[int], sums: Tensor, extra: dict[str, float], started: float) -> None:
        """Append the step's metrics to ``metrics.jsonl``, print a line, advance the progress."""
        seconds = time.monotonic() - started
        tokens = int(self.dataset.lengths[rows].sum())
        steps_per_epoch = -(-len(self.dataset) // self.job.batch.global_pairs)
        metrics = {"step": step + 1, "epoch": (step + 1) / steps_per_epoch, **averages(sums), **extra,
                   "pairs": len(rows), "pairs_per_second": len(rows) / seconds, "tokens_per_second": tokens / seconds,
                   "step_seconds": seconds, "memory/peak_gib": peak_memory_gib()}
        self.last_metrics = metrics
        if not self.state.first_metrics:
            self.state = self.state.model_copy(update={"first_metrics": metrics})
        if self.accelerator.is_main_process:
            with (self.job.out_dir / METRICS_FILE).open("a") as file:
                file.write(json.dumps(metrics) + "\n")
            log.info("step %5d/%d  loss %8.4f  accuracy %5.3f  margin %8.4f  grad_norm %8.3f  lr %9.2e  %6.2f pairs/s  "
                     "%5.1f GiB", step + 1, self.total_steps, metrics["loss"], metrics["rewards/accuracies"],
                     metrics["rewards/margins"], extra["grad_norm"], extra["learning_rate"],
                     metrics["pairs_per_second"], metrics["memory/peak_gib"])
        self.progress.advance(1, {name: metrics[name] for name in
                                  ("loss", "rewards/accuracies", "rewards/margins", "pairs_per_second")})

    def save_if_due(self, done_steps: int) -> None:
        """Write a checkpoint every N steps or at the end of an epoch, and when asked to stop; not after the last step."""
        every, pairs = self.job.train.checkpoint_every, self.job.batch.global_pairs
        interval = -(-len(self.dataset) // pairs) if every == "epoch" else every
        asked = float(self.stop.received)
        stopping = bool(sum_over_ranks(self.accelerator, torch.tensor([asked], device=self.accelerator.device)))
        if done_steps == self.total_steps or not (stopping or done_steps % interval == 0):
            return
        self.state = self.state.model_copy(update={"step": done_steps})
        if self.accelerator.is_main_process:
            save_checkpoint(_checkpoints(self.job), self.scorer.model, self.optimizer, self.state,
                            self.job.train.keep_checkpoints)
        self.accelerator.wait_for_everyone()
        if stopping:
            raise Preempted(f"Asked to stop: a checkpoint of step {done_steps} is written. Start again to go on from it.")


def _checkpoints(job: TrainJob) -> Path:
    return job.out_dir / "checkpoints"


def _explained(error: RuntimeError, batch: PairBatch) -> Exception:
    """Out of memory as its own kind, with the batch's shape and what to change; anything else as it is."""
    is_memory = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    if not is_memory:
        return error
    rows, tokens = batch.ids_RT.shape
    return OutOfMemory(f"Out of memory on a batch of {len(batch.weight_B)} pairs, {rows} rows of {tokens} tokens (data "
                       f"rows {batch.row_B.tolist()}). Lower train.tokens_per_forward, turn on "
                       "train.gradient_checkpointing, or lower data.max_length_tokens.")


def _guard(job: TrainJob, dataset: PairDataset, reference: ReferenceRows | None, scorer: PairScorer,
           layout: ForwardLayout, device: torch.device) -> dict[str, float]:
    """Run the step-0 guard where the reference is the policy's own start."""
    if reference is None or job.reference_checkpoint is None:
        return {}
    if job.reference_checkpoint.fingerprint != job.checkpoint.fingerprint:
        return {}
    return check_step_zero(scorer, dataset, reference, job.loss, layout, job.train.seed, device)


def _guard_other_reference(job: TrainJob, dataset: PairDataset, reference: ReferenceRows | None,
                           device: torch.device) -> dict[str, float]:
    """Another model as the reference: rewards are not 0, so rows are recomputed with that model, before the policy loads."""
    other = job.reference_checkpoint
    if reference is None or other is None or other.fingerprint == job.checkpoint.fingerprint:
        return {}
    scorer = PairScorer(load_model(other, device), job.train.precision)
    layout = choose_layout(scorer, probe_pairs(dataset), job.train.forward, device)
    return check_step_zero(scorer, dataset, reference, job.loss, layout, job.train.seed, device)


def _drop_metrics_after(path: Path, step: int) -> None:
    """Forget metrics of steps that are about to be run again."""
    if path.is_file():
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        write_bytes(path, "".join(line for line in lines if json.loads(line)["step"] <= step).encode())


def set_up(job: TrainJob, progress: Progress, stop: StopRequest) -> Trainer:
    """Load data, reference and policy; resume from the newest complete checkpoint; run the guard before a first update."""
    accelerator = start_accelerator()
    check_world_size(accelerator, job.batch.num_processes)
    torch.manual_seed(job.train.seed)
    device = accelerator.device
    dataset = PairDataset.open(job.data.path, "train")
    if not len(dataset):
        raise DataError(f"{job.data.path} has no rows to train on. Lower data.held_out or add data.")
    reference = read_reference(job.reference, "train", dataset.row_keys) if job.reference else None
    found = newest_checkpoint(_checkpoints(job), job.fingerprint)
    guard = {} if found else _guard_other_reference(job, dataset, reference, device)

    model = load_model(job.checkpoint, device)
    scorer = PairScorer(model, job.train.precision)
    layout = choose_layout(scorer, probe_pairs(dataset), job.train.forward, device)
    state = found[1] if found else RunState(step=0, job_fingerprint=job.fingerprint, guard=guard or _guard(
        job, dataset, reference, scorer, layout, device))
    if job.train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    optimizer = build_optimizer(scorer.parameters(), job.optim)
    if found:
        load_checkpoint(found[0], model, optimizer)
        log.info("resuming from %s", found[0].name)
    if accelerator.is_main_process:
        _drop_metrics_after(job.out_dir / METRICS_FILE, state.step)
    total = num_steps(len(dataset), job.batch.global_pairs, job.train.num_epochs, job.train.max_steps)
    progress.begin("train", total, "steps", done=state.step)
    return Trainer(job=job, accelerator=accelerator, dataset=dataset, reference=reference, scorer=scorer,
                   distributed_scorer=accelerator.prepare(scorer), optimizer=optimizer, layout=layout, progress=progress,
                   state=state, total_steps=total, stop=stop)


def run(job: TrainJob, progress: Progress) -> TrainResult:
    """Train and write the final weights."""
    stop = StopRequest()
    stop.listen()  # before the set-up, which may take minutes
    trainer = set_up(job, progress, stop)
    resumed_from = trainer.state.step or None
    trainer.train()
    weights, hashes = job.out_dir / "weights", {}
    if trainer.accelerator.is_main_process:
        hashes = save_weights(weights, trainer.scorer.model)
    trainer.accelerator.wait_for_everyone()
    return TrainResult(
        job_fingerprint=job.fingerprint, weights_path=weights, weights_fingerprint=fingerprint(hashes.get(MODEL_FILE)),
        weights_sha256=hashes, steps=trainer.total_steps, pairs=_pairs_seen(trainer), resumed_from_step=resumed_from,
        metrics_path=job.out_dir / METRICS_FILE, first_metrics=trainer.state.first_metrics,
        last_metrics=trainer.last_metrics, guard=trainer.state.guard, forward=trainer.layout)


def _pairs_seen(trainer: Trainer) -> int:
    pairs, rows = trainer.job.batch.global_pairs, len(trainer.dataset)
    full_epochs, rest = divmod(trainer.total_steps, -(-rows // pairs))
    return full_epochs * rows + min(rest * pairs, rows)
