"""Trained weights by name, one tensor in memory at a time: what an export writes.

Where all weights were trained they are read from the run's files. An adapter is added to the checkpoint's weights as each is
read: W + (alpha / rank) B A, in peft's order of operations, so the bits are those of its ``merge_and_unload``. Of 4-bit
weights W is what they stand for (``dpo_core.model.four_bits``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dpo_core.contract.errors import CheckpointError, StoreError
from dpo_core.model.unread_weights import UnreadWeights, weights_in


class TrainedWeights(Protocol):
    """The whole model's tensors, by the names of its state."""

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """Return a tensor on the CPU; numbers that are no floats keep their own dtype."""

    def close(self) -> None:
        """Let go of files."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """An adapter's update of one matrix."""

    a: Tensor  # [rank, in]
    b: Tensor  # [out, rank]
    scaling: float
    transposed: bool  # a Conv1D's weight is [in, out]

    def added_to(self, weight: Tensor) -> Tensor:
        """Add it to a float32 matrix, in place."""
        change = self.b @ self.a
        return weight.add_((change.T if self.transposed else change) * self.scaling)


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """Weights in files, with an adapter's updates by the names of what they change."""

    files: UnreadWeights
    updates: Mapping[str, LowRank] = field(default_factory=dict)
    # Of weights that were held in fewer bits while the adapter was trained: float32 values -> those that it saw.
    rounding: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    @torch.no_grad()
    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """See ``TrainedWeights``. Raises ``CheckpointError`` for an update that is not finite."""
        stored = self.files.slices.tensors[self.files.keys[name]]
        update, rounded = self.updates.get(name), self.rounding.get(name)
        is_changed = bool(update or rounded)
        read_as = torch.float32 if is_changed else dtype if stored.dtype.is_floating_point else stored.dtype
        values = torch.empty(stored.shape, dtype=read_as)
        self.files.fill(name, values)
        if rounded:
            values = rounded(values)
        if update and not torch.isfinite(update.added_to(values)).all():
            raise CheckpointError(f"The adapter makes {name} infinite. Train with a lower learning rate.")
        return values.to(dtype) if is_changed else values

    def close(self) -> None:
        self.files.slices.close()


@dataclass(frozen=True, slots=True)
class HeldWeights:
    """Weights of a model in memory, for models whose checkpoints' files hold other tensors than they do."""

    tensors: Mapping[str, Tensor]

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """See ``TrainedWeights``."""
        tensor = self.tensors[name].detach().cpu()
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    def close(self) -> None:
        pass


def trained_in(folder: Path, model: PreTrainedModel) -> StoredWeights:
    """Return the weights that a run left in ``folder`` for a model without values. Raises ``StoreError`` if they are not
    its."""
    files = weights_in(folder, model)
    if files is None:
        raise StoreError(f"{folder} does not hold the weights of {type(model).__name__}.")
    if more := files.slices.tensors.keys() - set(files.keys.values()):
        raise StoreError(f"{folder} holds other tensors than the model: {sorted(more)[:5]}.")
    return StoredWeights(files)


def updates_of(policy: nn.Module) -> dict[str, LowRank]:
    """Return a policy's adapter by the names of the weights that it changes."""
    updates = {}
    for name, module in policy.named_modules():
        if isinstance(module, LoraLayer):
            (key,) = module.lora_A  # one adapter
            a, b = (cast(nn.Linear, of[key]).weight.detach() for of in (module.lora_A, module.lora_B))
            updates[f"{name}.weight"] = LowRank(
                a, b, module.scaling[key], isinstance(module.get_base_layer(), Conv1D)
            )
    return updates
