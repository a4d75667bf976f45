"""AdamW and the learning rate as a pure function of the step, so that a resumed run cannot drift."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from dpo_core.contract.config import AdapterConfig, OptimConfig
from dpo_core.contract.cuda8bit import check_cuda8bit


def learning_rate_at(step: int, total_steps: int, optim: OptimConfig) -> float:
    """Return the learning rate of optimizer step ``step`` (0-based) of ``total_steps``, as transformers' schedulers give
    it.

    Warm-up takes ceil(warmup_ratio * total_steps) steps and starts at 0; then linear or half-cosine to 0, or constant.
    """
    warmup = math.ceil(optim.warmup_ratio * total_steps)
    if step < warmup:
        return optim.learning_rate * step / warmup
    passed = (step - warmup) / max(1, total_steps - warmup)
    shape = {
        "constant": 1.0,
        "linear": max(0.0, 1.0 - passed),
        "cosine": 0.5 * (1.0 + math.cos(math.pi * passed)),
    }
    return optim.learning_rate * shape[optim.schedule]


def build_optimizer(parameters: Iterable[nn.Parameter], optim: OptimConfig) -> torch.optim.Optimizer:
    """Build fused AdamW, or bitsandbytes' with moments in 8 bits; weight decay (decoupled) on matrices, not on biases
    and norms.

    Raises ``ConfigError`` for 8 bits where there is no CUDA or no bitsandbytes.
    """
    trainable = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    betas = (optim.beta1, optim.beta2)
    if optim.optimizer == "adamw_8bit":
        check_cuda8bit(AdapterConfig(), optim, torch.cuda.device_count())
        from bitsandbytes.optim import AdamW8bit  # of the extra cuda8bit: not there as a rule

        return AdamW8bit(groups, lr=optim.learning_rate, betas=betas, eps=optim.epsilon)
    return torch.optim.AdamW(groups, lr=optim.learning_rate, betas=betas, eps=optim.epsilon, fused=True)


def create_moments(optimizer: torch.optim.Optimizer) -> None:
    """Create AdamW's state as its first step would make it: the memory is taken now, and there is something to restore
    into.
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.state[p] = {
                "step": torch.zeros((), dtype=torch.float32, device=p.device),
                "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
            }


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
