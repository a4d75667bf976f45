"""Weights that nothing updates, where back ends share weights out in bf16: held in bf16 themselves, half of the memory."""

from collections.abc import Iterable

import torch
from torch import nn

from dpo_core.model.adapter import in_full


@torch.no_grad()
def hold_in_half(parameters: Iterable[nn.Parameter], have_values: bool) -> None:
    """Hold those of ``parameters`` in bf16 that are float32 and not trained, in place. Without values, which are read from
    files later, memory that nothing was written to is replaced by such, and so takes none."""
    for parameter in parameters:
        if not parameter.requires_grad and parameter.dtype == torch.float32:
            half = torch.empty_like(parameter, dtype=torch.bfloat16)
            parameter.data = half.copy_(parameter) if have_values else half


def hold_matrices_in_half(model: nn.Module, have_values: bool) -> list[nn.Parameter]:
    """Do so with the matrices, for forwards under autocast. -> all matrices"""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    hold_in_half(matrices, have_values)
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.weight.dtype == torch.bfloat16:
            module.register_forward_hook(in_full)
    return matrices
