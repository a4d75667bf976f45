"""The f-divergences that hold a policy near its reference, as what they make of a log ratio. Shapes: B pairs.

f'(u) of those that f-DPO admits, as functions of log u, u = policy / reference (Wang et al. 2023, arXiv 2309.16240,
table 1). Each is shifted by a constant, which cancels in a pair, to be 0 at u = 1. [B] -> [B]
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo_core.contract.loss_config import LossConfig

# e^88.7 overflows float32, and ipo squares: an infinite score gives a well-separated pair a NaN gradient.
LARGEST_EXPONENT = 40.0


def _reverse_kl(log_ratio_B: Tensor, config: LossConfig) -> Tensor:
    return log_ratio_B


def _forward_kl(log_ratio_B: Tensor, config: LossConfig) -> Tensor:
    return 1 - torch.exp((-log_ratio_B).clamp(max=LARGEST_EXPONENT))


def _js_divergence(log_ratio_B: Tensor, config: LossConfig) -> Tensor:
    return math.log(2) + logsigmoid(log_ratio_B)


def _alpha_divergence(log_ratio_B: Tensor, config: LossConfig) -> Tensor:
    alpha = config.alpha_divergence_coef
    return -torch.expm1((-alpha * log_ratio_B).clamp(max=LARGEST_EXPONENT)) / alpha


DIVERGENCES: dict[str, Callable[[Tensor, LossConfig], Tensor]] = {
    "reverse_kl": _reverse_kl,
    "forward_kl": _forward_kl,
    "js_divergence": _js_divergence,
    "alpha_divergence": _alpha_divergence,
}
