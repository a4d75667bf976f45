"""Weights in bf16 with fp32 masters (``train.precision: bf16_pure``): one process, or several that each hold everything.

Forward and backward see bf16 weights. A parameter's gradient is added to its master's in fp32 as soon as it is there, and
forgotten, so microbatches add up without rounding; AdamW updates the masters, and the weights are their rounded copies.
Ranks sum gradients while a step's last backward goes on. Masters start at the rounded weights. A checkpoint holds the
masters.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dpo_core.contract.checkpoint_files import RUN_OPTIMIZER, RUN_WEIGHTS
from dpo_core.contract.config import OptimConfig
from dpo_core.data.pair_batch import PairBatch
from dpo_core.engine.checkpoint import model_tensors
from dpo_core.engine.gradient_buckets import GradientBuckets
from dpo_core.engine.optim import build_optimizer, create_moments, set_learning_rate
from dpo_core.engine.stored_tensor import StoredTensor, fill_from, whole
from dpo_core.model.forward import PairScorer, SequenceScores


@dataclass
class MasterEngine:
    """See ``Engine``."""

    accelerator: Accelerator
    scorer: PairScorer
    masters: dict[str, nn.Parameter]  # by the model's names, float32
    gradients: GradientBuckets  # of the masters
    optimizer: torch.optim.Optimizer
    max_grad_norm: float

    @classmethod
    def start(cls, accelerator: Accelerator, scorer: PairScorer, optim: OptimConfig) -> "MasterEngine":
        """Make masters of a scorer whose weights are bf16 on the device."""
        weights = dict(scorer.model.named_parameters())
        masters = {name: nn.Parameter(weight.detach().float()) for name, weight in weights.items()}
        gradients = GradientBuckets(masters.values())
        for name, weight in weights.items():
            weight.register_post_accumulate_grad_hook(_adds_to(masters[name], gradients))
        optimizer = build_optimizer(masters.values(), optim)
        create_moments(optimizer)
        return cls(accelerator, scorer, masters, gradients, optimizer, optim.max_grad_norm)

    def scores(self, batch: PairBatch) -> SequenceScores:
        return self.scorer(batch)

    def accumulate(self, last: bool) -> contextlib.AbstractContextManager:
        exchanges = last and self.accelerator.num_processes > 1
        return self.gradients.exchanging() if exchanges else contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def step(self, learning_rate: float) -> float:
        set_learning_rate(self.optimizer, learning_rate)
        self.gradients.wait()
        norm = float(nn.utils.clip_grad_norm_(self.masters.values(), self.max_grad_norm, foreach=True))
        self.optimizer.step()
        self.spread_weights()
        self.discard_gradients()
        return norm

    def discard_gradients(self) -> None:
        self.gradients.forget()

    def model_tensors(self) -> dict[str, StoredTensor]:
        return {
            name: self._whole(self.masters.get(name, tensor))
            for name, tensor in model_tensors(self.scorer.model).items()
        }

    def optimizer_tensors(self) -> dict[str, StoredTensor]:
        return {
            f"{name}::{key}": self._whole(value)
            for name, master in self.masters.items()
            for key, value in self.optimizer.state[master].items()
        }

    def load(self, folder: Path) -> None:
        fill_from(folder, RUN_WEIGHTS, self.model_tensors())
        fill_from(folder, RUN_OPTIMIZER, self.optimizer_tensors())
        self.spread_weights()

    def _whole(self, tensor: Tensor) -> StoredTensor:
        return whole(tensor, self.accelerator.process_index, self.accelerator.num_processes)

    @torch.no_grad()
    def spread_weights(self) -> None:
        for name, weight in self.scorer.model.named_parameters():
            weight.copy_(self.masters[name])


def _adds_to(master: nn.Parameter, gradients: GradientBuckets) -> Callable[[Tensor], None]:
    def add(weight: Tensor) -> None:
        total, new = master.grad, weight.grad
        assert total is not None  # made with the master
        assert new is not None  # the hook runs once it is there
        total.add_(new)
        weight.grad = None
        gradients.added(master)

    return add
