"""Gradient checkpointing that keeps what is dear to compute, as far as a budget of memory goes.

Checkpointing keeps a layer's input and computes the layer again in the backward: a quarter of all products of matrices.
With a budget outputs of products and of attention are kept while it lasts (selective recomputation: Korthikanti et al. 2022,
arXiv 2205.05198), first layers first; what is cheap (norms, rotations, activations) is always computed again. The numbers
are the same to the bit: what is kept is what would be computed again.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    create_selective_checkpoint_contexts,
)
from transformers import PreTrainedModel

from dpo_core.contract.errors import ConfigError
from dpo_core.model.attention import decoder_of

DEAR = {
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "torch_attn::_varlen_attn",
}


@dataclass
class KeptProducts:
    """The outputs that a forward keeps. Each process decides for itself: nothing that it sends depends on it."""

    budget: int  # bytes
    used: int = 0  # of the forward that runs, or ran last

    def begin(self, *_: Any) -> None:
        """Start a forward with nothing kept. A hook before the decoder's."""
        self.used = 0

    def contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """Return what a checkpointed layer's forward and its second computation run in."""
        return create_selective_checkpoint_contexts(self._policy)

    def _policy(self, context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if operator._schema.name in DEAR:
            num_bytes = _bytes(tree_leaves(context.op_output))
            if self.used + num_bytes <= self.budget:
                self.used += num_bytes
                return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE


def _bytes(leaves: Iterable[Any]) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor))


def checkpoint_layers(model: PreTrainedModel, budget: int) -> KeptProducts:
    """Have a model's layers computed again in the backward, but for ``budget`` bytes of their products. Raises
    ``ConfigError`` where torch does not tell how large they are."""
    kept = KeptProducts(budget)
    arguments: dict[str, Any] = {"use_reentrant": False}
    if budget:
        if not hasattr(SelectiveCheckpointContext(is_recompute=False), "op_output"):
            raise ConfigError(
                f"train.activation_budget_gib needs torch 2.13 or later, and torch is {torch.__version__} where this step "
                "runs. Install it (requirements/train-cuda.txt), or set the budget to 0."
            )
        arguments["context_fn"] = kept.contexts
        decoder_of(model).register_forward_pre_hook(kept.begin)
    model.gradient_checkpointing_enable(arguments)
    return kept
