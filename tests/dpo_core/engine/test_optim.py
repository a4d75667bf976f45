"""The learning rate as a function of the step against transformers' schedulers, and AdamW's groups."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import TrainingArguments, get_scheduler

from dpo_core.contract.config import OptimConfig
from dpo_core.engine.optim import build_optimizer, learning_rate_at, set_learning_rate

NAMES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def transformers_rates(schedule: str, total: int, warmup_steps: int, peak: float) -> list[float]:
    """Learning rate that transformers' Trainer uses in each optimizer step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = get_scheduler(NAMES[schedule], optimizer, warmup_steps, total)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@given(schedule=st.sampled_from(sorted(NAMES)), total=st.integers(1, 120), ratio=st.floats(0, 0.99))
def test_rates_are_those_of_transformers(schedule, total, ratio):
    optim = OptimConfig(learning_rate=3e-4, schedule=schedule, warmup_ratio=ratio)
    warmup_steps = TrainingArguments(output_dir="unused", warmup_steps=ratio, use_cpu=True).get_warmup_steps(
        total
    )
    expected = transformers_rates(schedule, total, warmup_steps, 3e-4)
    assert [learning_rate_at(step, total, optim) for step in range(total)] == pytest.approx(
        expected, rel=1e-12, abs=0
    )


def test_rates_by_hand():
    linear = OptimConfig(learning_rate=1.0, schedule="linear", warmup_ratio=0.2)
    # 10 steps, 2 of warm-up (0/2, 1/2), then down from 1 over 8 steps
    assert [learning_rate_at(step, 10, linear) for step in range(10)] == pytest.approx(
        [0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )
    cosine = linear.model_copy(update={"schedule": "cosine"})
    assert learning_rate_at(6, 10, cosine) == pytest.approx(0.5)  # half way: (1 + cos(pi / 2)) / 2
    assert learning_rate_at(9, 10, linear.model_copy(update={"schedule": "constant"})) == 1.0


def test_weight_decay_is_for_matrices_only():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3))
    optimizer = build_optimizer(
        model.parameters(),
        OptimConfig(weight_decay=0.1, learning_rate=0.01, beta1=0.8, beta2=0.95, epsilon=1e-6),
    )
    decayed = {
        id(p) for group in optimizer.param_groups if group["weight_decay"] == 0.1 for p in group["params"]
    }
    plain = {
        id(p) for group in optimizer.param_groups if group["weight_decay"] == 0.0 for p in group["params"]
    }
    assert decayed == {id(model[0].weight), id(model[1].weight)}
    assert plain == {id(model[1].bias), id(model[2].weight), id(model[2].bias)}
    assert {(group["lr"], group["betas"], group["eps"]) for group in optimizer.param_groups} == {
        (0.01, (0.8, 0.95), 1e-6)
    }


def test_frozen_parameters_are_left_out():
    model = nn.Linear(4, 3)
    model.bias.requires_grad_(False)
    optimizer = build_optimizer(model.parameters(), OptimConfig())
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]


def test_a_step_by_hand():
    parameter = nn.Parameter(torch.tensor([[1.0]]))
    optimizer = build_optimizer([parameter], OptimConfig(learning_rate=0.5, weight_decay=0.2, epsilon=1e-12))
    set_learning_rate(optimizer, 0.1)
    parameter.grad = torch.tensor([[3.0]])
    optimizer.step()
    # decay first: 1 * (1 - 0.1 * 0.2) = 0.98; Adam's first step is lr * g / |g| = 0.1 whatever the gradient's size
    assert float(parameter.detach()) == pytest.approx(0.88, abs=1e-6)
