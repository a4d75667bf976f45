"""The length-controlled win rate: by hand where that can be, else by an optimiser of another kind."""

import numpy as np
import pytest
import torch

from dpo_core.judging.length_control import length_controlled


def fitted_by_torch(preferences: np.ndarray, more: np.ndarray) -> tuple[float, float]:
    """theta and phi by L-BFGS on the loss as the paper writes it, with the penalty on phi."""
    lengths = torch.tensor(np.tanh(more / np.std(more, ddof=1)))
    wanted, weights = torch.tensor(preferences), torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-15)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = weights[0] + weights[1] * lengths
        total = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        total = total + weights[1] ** 2 / 2
        total.backward()
        return total

    optimizer.step(loss)
    return tuple(weights.tolist())


@pytest.mark.parametrize("seed", range(5))
def test_it_is_what_another_optimiser_finds(seed: int):
    rng = np.random.default_rng(seed)
    more = np.round(rng.normal(60, 200, 150))
    chances = 1 / (1 + np.exp(-(0.4 * seed - 1 + 1.5 * np.tanh(more / 200))))
    preferences = (rng.random(150) < chances).astype(float)
    preferences[::7] = 0.5
    theta, _ = fitted_by_torch(preferences, more)
    found = length_controlled(preferences, more)
    assert found.rate == pytest.approx(1 / (1 + np.exp(-theta)), abs=1e-9)


def test_answers_of_equal_length_leave_the_win_rate_and_its_error():
    preferences = np.array([1.0, 0.0, 1.0, 0.5, 0.75])
    found = length_controlled(preferences, np.zeros(5))
    assert found.rate == pytest.approx(0.65, abs=1e-12)
    assert found.stderr == pytest.approx(np.std(preferences, ddof=1) / np.sqrt(5), rel=1e-9)


def test_a_judge_that_goes_by_length_alone_finds_no_difference():
    """By hand: lengths and preferences are symmetric about (0, one half), so theta is nought."""
    more = np.array([-300.0, -100.0, 100.0, 300.0])
    assert length_controlled((more > 0).astype(float), more).rate == pytest.approx(0.5, abs=1e-12)


def test_a_longer_winner_loses_some_of_its_rate():
    rng = np.random.default_rng(1)
    more = rng.normal(150, 100, 400)
    preferences = (rng.random(400) < 1 / (1 + np.exp(-np.tanh(more / 100)))).astype(float)
    found = length_controlled(preferences, more)
    assert found.rate < preferences.mean() - 0.05
    assert found.rate == pytest.approx(0.5, abs=3 * found.stderr)


def test_its_error_is_that_of_other_prompts():
    """Against the spread of figures of resampled prompts."""
    rng = np.random.default_rng(2)
    more = rng.normal(50, 100, 300)
    preferences = (rng.random(300) < 1 / (1 + np.exp(-(0.3 + np.tanh(more / 100))))).astype(float)
    resampled = []
    for _ in range(200):
        rows = rng.integers(0, 300, 300)
        resampled.append(length_controlled(preferences[rows], more[rows]).rate)
    assert length_controlled(preferences, more).stderr == pytest.approx(np.std(resampled), rel=0.2)


@pytest.mark.parametrize(
    ("preferences", "more", "rate"),
    [
        ([1.0, 1.0, 1.0], [5.0, 0.0, -3.0], 1.0),
        ([0.0, 0.0], [5.0, 6.0], 0.0),
        ([1.0], [0.0], None),
        ([1.0, 0.0], [7.0, 7.0], None),
    ],
    ids=["always won", "always lost", "one prompt", "one difference"],
)
def test_what_no_fit_can_tell(preferences: list[float], more: list[float], rate: float | None):
    found = length_controlled(np.array(preferences), np.array(more))
    assert (found and found.rate) == rate


def test_scores_that_are_nearly_certain_are_no_trouble():
    preferences = np.array([1 - 1e-15, 1.0, 1.0, 1 - 1e-6, 0.999])
    assert 0.999 < length_controlled(preferences, np.array([5.0, 1.0, 9.0, -3.0, 2.0])).rate <= 1.0
