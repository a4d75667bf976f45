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
    whole_here = sorted(slopes.keys() - share.cuts.keys())
    sum_together([slopes[name].to_local() for name in whole_here], share.ranks.group)
    for name in whole_here:
        if name not in share.summed:  # of what is the same: a bit that differs must not set processes apart
            slopes[name].to_local().div_(share.ranks.size)
    cut, whole = (
        _square([slope for name, slope in slopes.items() if (name in share.cuts) is is_cut])
        for is_cut in (True, False)
    )
    norm = (share.ranks.sum(cut) + whole).sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([slope.to_local() for slope in slopes.values()], factor)
    return float(norm)


def sum_together(slopes: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Sum each over processes, in place: all in one exchange. They are norms' and biases', of kilobytes each."""
    if not slopes:
        return
    flat = torch.cat([slope.reshape(-1) for slope in slopes])
    dist.all_reduce(flat, group=group)
    torch._foreach_copy_(
        list(slopes),
        [
            part.view(slope.shape)
            for part, slope in zip(flat.split([slope.numel() for slope in slopes]), slopes, strict=True)
        ],
    )


def _square(slopes: Sequence[DTensor]) -> Tensor:
    """The square of their norm, over the processes that FSDP2 shares them out to."""
    return cast(DTensor, nn.utils.get_total_norm(slopes, foreach=True)).full_tensor().square()
