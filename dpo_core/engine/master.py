"""Weights in bf16 with fp32 masters (``train.precision: bf16_pure``): one process, or several that each hold everything.

Forward and backward see bf16 weights. A parameter's gradient is added to its master's in fp32 as soon as it is there, and
forgotten, so microbatches add up without rounding; AdamW updates the masters, and the weights are their rounded copies.
Masters start at the rounded weights. A checkpoint holds the masters.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from dpo_core.contract.checkpoint_files import RUN_OPTIMIZER, RUN_WEIGHTS
from dpo_core.contract.config import OptimConfig
from dpo_core.data.pair_batch import PairBatch
from dpo_core.engine.checkpoint import model_tensors
from dpo_core.engine.optim import build_optimizer, create_moments, set_learning_rate
from dpo_core.engine.stored_tensor import StoredTensor, fill_from, whole
from dpo_core.model.forward import PairScorer, SequenceScores


@dataclass
class MasterEngine:
    """See ``Engine``."""

    accelerator: Accelerator
    scorer: PairScorer
    masters: dict[str, nn.Parameter]  # by the model's names, float32
    optimizer: torch.optim.Optimizer
    max_grad_norm: float

    @classmethod
    def start(cls, accelerator: Accelerator, scorer: PairScorer, optim: OptimConfig) -> "MasterEngine":
        """Make masters of a scorer whose weights are bf16 on the device."""
        masters = {}
        for name, weight in scorer.model.named_parameters():
            masters[name] = nn.Parameter(weight.detach().float())
            masters[name].grad = torch.zeros_like(masters[name])
            weight.register_post_accumulate_grad_hook(_adds_to(masters[name]))
        optimizer = build_optimizer(masters.values(), optim)
        create_moments(optimizer)
        return cls(accelerator, scorer, masters, optimizer, optim.max_grad_norm)

    def scores(self, batch: PairBatch) -> SequenceScores:
        return self.scorer(batch)

    def accumulate(self, last: bool) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def step(self, learning_rate: float) -> float:
        set_learning_rate(self.optimizer, learning_rate)
        if self.accelerator.num_processes > 1:
            for master in self.masters.values():
                dist.all_reduce(master.grad)
        norm = float(nn.utils.clip_grad_norm_(self.masters.values(), self.max_grad_norm, foreach=True))
        self.optimizer.step()
        self.spread_weights()
        self.discard_gradients()
        return norm

    def discard_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=False)

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


def _adds_to(master: nn.Parameter) -> Callable[[Tensor], None]:
    def add(weight: Tensor) -> None:
        total, new = master.grad, weight.grad
        assert total is not None  # made with the master
        assert new is not None  # the hook runs once it is there
        total.add_(new)
        weight.grad = None

    return add
