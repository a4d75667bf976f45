"""One process, or several with DDP: every rank holds everything."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dpo_core.contract.checkpoint_files import RUN_OPTIMIZER, files_of
from dpo_core.contract.config import OptimConfig
from dpo_core.data.pair_batch import PairBatch
from dpo_core.engine.checkpoint import load_weights, model_tensors
from dpo_core.engine.optim import build_optimizer, create_moments, set_learning_rate
from dpo_core.engine.stored_tensor import StoredTensor, whole
from dpo_core.model.forward import PairScorer, SequenceScores
from dpo_core.model.tensor_slices import open_slices


@dataclass
class PlainEngine:
    """See ``Engine``."""

    accelerator: Accelerator
    scorer: PairScorer
    distributed: nn.Module  # the scorer itself, or DDP around it
    optimizer: torch.optim.Optimizer
    max_grad_norm: float

    @classmethod
    def start(cls, accelerator: Accelerator, scorer: PairScorer, optim: OptimConfig) -> "PlainEngine":
        """Prepare a scorer whose model is on the device."""
        optimizer = build_optimizer(scorer.parameters(), optim)
        if isinstance(optimizer, torch.optim.AdamW):  # the 8-bit one makes its state itself
            create_moments(optimizer)
        return cls(accelerator, scorer, accelerator.prepare(scorer), optimizer, optim.max_grad_norm)

    def scores(self, batch: PairBatch) -> SequenceScores:
        return self.distributed(batch)

    def accumulate(self, last: bool) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.distributed)

    def backward(self, loss: Tensor) -> None:
        # DDP averages gradients over ranks, so a rank's sum is scaled up by the number of ranks.
        self.accelerator.backward(loss * self.accelerator.num_processes)

    def step(self, learning_rate: float) -> float:
        set_learning_rate(self.optimizer, learning_rate)
        norm = float(nn.utils.clip_grad_norm_(trainable(self.scorer), self.max_grad_norm, foreach=True))
        self.optimizer.step()
        self.discard_gradients()
        return norm

    def discard_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def model_tensors(self) -> dict[str, StoredTensor]:
        return {name: self._whole(tensor) for name, tensor in model_tensors(self.scorer.model).items()}

    def optimizer_tensors(self) -> dict[str, StoredTensor]:
        return {
            f"{name}::{key}": self._whole(torch.as_tensor(value))
            for name, parameter in self.scorer.model.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }

    def spread_weights(self) -> None:
        pass  # there is no other copy

    def load(self, folder: Path) -> None:
        load_weights(folder, self.scorer.model)
        parameters = dict(self.scorer.model.named_parameters())
        with open_slices(files_of(folder, RUN_OPTIMIZER)) as slices:
            for stored, about in slices.tensors.items():
                name, _, key = stored.partition("::")
                # The fused kernel wants its step counter on the parameter's device, too; bitsandbytes wants a number.
                value = torch.empty(about.shape, dtype=about.dtype, device=parameters[name].device)
                slices.fill(stored, value)
                as_number = key == "step" and not isinstance(self.optimizer, torch.optim.AdamW)
                self.optimizer.state[parameters[name]][key] = int(value) if as_number else value

    def _whole(self, tensor: Tensor) -> StoredTensor:
        return whole(tensor, self.accelerator.process_index, self.accelerator.num_processes)


def trainable(module: nn.Module) -> Iterable[nn.Parameter]:
    """Return the parameters that get gradients."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
