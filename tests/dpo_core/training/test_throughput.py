"""How fast a step was: operations by hand, cards by their names, the clock of a step's parts."""

import time

import numpy as np
import pytest
import torch

from dpo_core.contract.card_speed import bf16_peak
from dpo_core.contract.model_shape import ModelShape
from dpo_core.training.throughput import DATA, EXCHANGE, StepClock, Work

SHAPE = ModelShape(num_layers=2, hidden_size=8, intermediate_size=16, query_size=8, key_size=4, vocab_size=50)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Tesla T4", None),
        ("", None),
    ],
)
def test_a_card_is_known_by_what_the_driver_calls_it(name, peak):
    assert bf16_peak(name) == peak


@pytest.mark.parametrize("times", [3, 2])
def test_operations_of_a_pair_by_hand(times):
    """3 shared tokens, 2 more of chosen, 1 more of rejected; 3 of them trained."""
    work = Work(SHAPE, float(times), None, 1)
    weights = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16
    visible = (1 + 2 + 3 + 4 + 5) + 4
    forward = 2 * (2 * weights * 6 + 4 * 8 * visible) + 2 * 8 * 50 * 3
    found = work.operations(np.array([[5, 4]]), np.array([3]), 3.0)
    assert found == times * forward
    both = work.operations(np.array([[5, 4], [5, 4]]), np.array([3, 3]), 6.0)
    assert both == 2 * found


def test_shares_are_of_all_cards_and_nothing_is_said_that_is_not_known():
    known = Work(SHAPE, 3.0, 100.0, 4)
    assert known.figures(tokens=80, operations=400.0, seconds=2.0) == {
        "tokens_per_second": 40,
        "tokens_per_second_per_device": 10,
        "tflops_per_device": 50e-12,
        "mfu": 0.5,
    }
    assert "mfu" not in Work(SHAPE, 3.0, None, 4).figures(80, 400.0, 2.0)
    nothing = Work(None, 3.0, 100.0, 4)
    assert nothing.operations(np.array([[5, 4]]), np.array([3]), 3.0) is None
    assert nothing.figures(80, None, 2.0) == {"tokens_per_second": 40, "tokens_per_second_per_device": 10}


def test_the_clock_adds_up_parts_and_forgets_what_was_taken():
    clock = StepClock(torch.device("cpu"))
    for _ in range(2):
        with clock.part(DATA):
            time.sleep(0.002)
    with clock.exchange():
        pass
    taken = clock.take()
    assert set(taken) == {DATA, EXCHANGE}
    assert taken[DATA] >= 0.004
    assert clock.take() == {}
