"""Gradients where processes share each layer's matrices out: sums and norms that FSDP2 knows nothing of."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dpo_core.model.tensor_parallel import TensorShare


@torch.no_grad()
def clip_shared(model: nn.Module, share: TensorShare, max_norm: float) -> float:
    """Clip the gradients of a model that was shared out to a norm of all of it, as ``clip_grad_norm_`` does. -> the norm
    before"""
    slopes = {
        name: cast(DTensor, parameter.grad)
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    for name in sorted(slopes.keys() - share.cuts.keys()):
        held = slopes[name].to_local()
        dist.all_reduce(held, group=share.ranks.group)
        if name not in share.summed:
            held /= share.ranks.size  # of what is the same: a bit that differs must not set processes apart
    cut, whole = (
        _square([slope for name, slope in slopes.items() if (name in share.cuts) is is_cut])
        for is_cut in (True, False)
    )
    norm = (share.ranks.sum(cut) + whole).sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([slope.to_local() for slope in slopes.values()], factor)
    return float(norm)


def _square(slopes: Sequence[DTensor]) -> Tensor:
    """The square of their norm, over the processes that FSDP2 shares them out to."""
    return cast(DTensor, nn.utils.get_total_norm(slopes, foreach=True)).full_tensor().square()
