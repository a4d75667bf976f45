"""Losses against values worked out by hand, and the properties that define them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpo_core.config import LossConfig
from dpo_core.losses import LOSSES, LossOutput, PairLogps

LOG2 = math.log(2)


def logps(chosen: float, rejected: float, chosen_tokens: float = 4, rejected_tokens: float = 5,
          chosen_tail: float = 0, rejected_tail: float = 0) -> PairLogps:
    """One pair, B = 1, in float64."""
    return PairLogps(*(torch.tensor([x], dtype=torch.float64) for x in (chosen, rejected, chosen_tokens, rejected_tokens,
                                                                        chosen_tail, rejected_tail)))


# Sums and counts that divide into round means. Policy: chosen -8 over 4 tokens (mean -2), rejected -15 over 5 (-3).
# Reference: chosen -10 over 4 (-2.5), rejected -14 over 5 (-2.8).
POLICY, REFERENCE = logps(-8, -15), logps(-10, -14)


def values(output: LossOutput) -> tuple[float, float, float]:
    return float(output.losses_B), float(output.chosen_rewards_B), float(output.rejected_rewards_B)


def softplus(x: float) -> float:
    """log(1 + e^x), which is -log sigmoid(-x)."""
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(("config", "loss", "chosen_reward", "rejected_reward"), [
    # log ratios of sums: chosen -8 + 10 = 2, rejected -15 + 14 = -1; margin 0.1 * 3 = 0.3;
    # -log sigmoid(0.3) = log(1 + e^-0.3) = log(1.740818) = 0.554355
    (LossConfig(name="dpo", beta=0.1), 0.554355, 0.2, -0.1),
    # smoothing 0.1: 0.9 * 0.554355 + 0.1 * log(1 + e^0.3) = 0.498920 + 0.1 * 0.854355 = 0.584355
    (LossConfig(name="dpo", beta=0.1, label_smoothing=0.1), 0.584355, 0.2, -0.1),
    # log ratios of means: chosen -2 + 2.5 = 0.5, rejected -3 + 2.8 = -0.2; margin 5 * 0.7 = 3.5; log(1 + e^-3.5)
    # = log(1.030197) = 0.029750
    (LossConfig(name="dpo_norm", beta=5.0), 0.029750, 2.5, -1.0),
    # smoothing 0.1: 0.9 * 0.029750 + 0.1 * log(1 + e^3.5) = 0.026775 + 0.1 * 3.529750 = 0.379750
    (LossConfig(name="dpo_norm", beta=5.0, label_smoothing=0.1), 0.379750, 2.5, -1.0),
    # means: 2 * (-2 + 3 - 0.3) = 1.4; log(1 + e^-1.4) = log(1.246597) = 0.220417; rewards 2 * -2 and 2 * -3
    (LossConfig(name="simpo", beta=2.0, gamma_beta_ratio=0.3), 0.220417, -4.0, -6.0),
    # smoothing 0.2: 0.8 * 0.220417 + 0.2 * log(1 + e^1.4) = 0.176334 + 0.2 * 1.620417 = 0.500417
    (LossConfig(name="simpo", beta=2.0, gamma_beta_ratio=0.3, label_smoothing=0.2), 0.500417, -4.0, -6.0),
    # means: 0.5 + 0.2 = 0.7 against 1 / (2 * 0.5) = 1: (0.7 - 1)^2 = 0.09; rewards 0.5 * 0.5 and 0.5 * -0.2
    (LossConfig(name="ipo", beta=0.5), 0.09, 0.25, -0.1),
    # weight exp(-2 - 3) = 0.00673795, times dpo's 0.554355: 0.00373522
    (LossConfig(name="wpo", beta=0.1), 0.00373522, 0.2, -0.1),
    # smoothing 0.1 acts on dpo's part: 0.00673795 * 0.584355 = 0.00393735
    (LossConfig(name="wpo", beta=0.1, label_smoothing=0.1), 0.00393735, 0.2, -0.1),
], ids=lambda value: value.name + ("-smoothed" * (value.label_smoothing > 0)) if isinstance(value, LossConfig) else "")
def test_a_pair_worked_out_by_hand(config, loss, chosen_reward, rejected_reward):
    output = values(LOSSES[config.name](POLICY, REFERENCE, config))
    assert output == pytest.approx((loss, chosen_reward, rejected_reward), abs=1e-6)


@pytest.mark.parametrize(("name", "expected"), [
    ("dpo", LOG2), ("dpo_norm", LOG2),
    ("ipo", 1 / (2 * 0.5) ** 2),  # (0 - 1 / (2 beta))^2 with beta 0.5
    ("wpo", math.exp(-10 / 4 - 14 / 5) * LOG2),  # the reference's means are the policy's
])
def test_a_policy_that_is_the_reference_has_no_rewards_and_the_loss_of_a_zero_margin(name, expected):
    output = values(LOSSES[name](REFERENCE, REFERENCE, LossConfig(name=name, beta=0.5)))
    assert output == pytest.approx((expected, 0, 0), abs=1e-12)


def test_simpo_needs_no_reference():
    config = LossConfig(name="simpo", beta=2.0)
    assert values(LOSSES["simpo"](POLICY, None, config)) == values(LOSSES["simpo"](POLICY, REFERENCE, config))


def test_dpo_norm_of_one_token_answers_is_dpo():
    policy, reference = logps(-1.0, -2.0, 1, 1), logps(-1.5, -1.0, 1, 1)
    by_name = [values(LOSSES[name](policy, reference, LossConfig(name=name, beta=0.7))) for name in ("dpo", "dpo_norm")]
    assert by_name[0] == by_name[1]


# d loss / d chosen sum at the pair above. The logistic's slope is -sigmoid(-x): dpo -0.1 * sigmoid(-0.3) = -0.0425557;
# dpo_norm -5 / 4 tokens * sigmoid(-3.5) = -0.0366402; simpo -2 / 4 * sigmoid(-1.4) = -0.0989082;
# ipo 2 * (0.7 - 1) / 4 = -0.15; wpo is dpo times 0.00673795, the weight being no part of the gradient.
@pytest.mark.parametrize(("name", "beta", "chosen_slope", "rejected_slope"), [
    ("dpo", 0.1, -0.0425557, 0.0425557), ("dpo_norm", 5.0, -0.0366402, 0.0366402 * 4 / 5),
    ("simpo", 2.0, -0.0989082, 0.0989082 * 4 / 5), ("ipo", 0.5, -0.15, 0.15 * 4 / 5),
    ("wpo", 0.1, -0.0425557 * 0.00673795, 0.0425557 * 0.00673795)])
def test_gradients_raise_the_chosen_and_lower_the_rejected(name, beta, chosen_slope, rejected_slope):
    policy = logps(-8, -15)
    for side in (policy.chosen_B, policy.rejected_B):
        side.requires_grad_()
    output = LOSSES[name](policy, REFERENCE, LossConfig(name=name, beta=beta))
    assert not output.chosen_rewards_B.requires_grad
    assert not output.rejected_rewards_B.requires_grad
    output.losses_B.sum().backward()
    slopes = float(policy.chosen_B.grad), float(policy.rejected_B.grad)
    assert slopes == pytest.approx((chosen_slope, rejected_slope), rel=1e-5)


def joined(first: PairLogps, second: PairLogps) -> PairLogps:
    return PairLogps(*(torch.cat([getattr(first, name), getattr(second, name)]) for name in PairLogps.__slots__))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_pairs_of_a_batch_do_not_touch_each_other(name):
    config, loss, other, other_reference = LossConfig(name=name, beta=0.4), LOSSES[name], logps(-3, -2), logps(-1, -6)
    both = loss(joined(POLICY, other), joined(REFERENCE, other_reference), config).losses_B
    alone = [values(loss(POLICY, REFERENCE, config))[0], values(loss(other, other_reference, config))[0]]
    assert both.tolist() == pytest.approx(alone)


sums = st.floats(-300, -0.01)
counts = st.integers(1, 200)
sides = st.builds(logps, sums, sums, counts, counts)


def swapped(side: PairLogps) -> PairLogps:
    return PairLogps(side.rejected_B, side.chosen_B, side.rejected_tokens_B, side.chosen_tokens_B, side.rejected_tail_B,
                     side.chosen_tail_B)


@given(policy=sides, reference=sides, name=st.sampled_from(sorted(LOSSES)), beta=st.floats(0.01, 5))
def test_swapping_chosen_and_rejected_swaps_the_rewards(policy, reference, name, beta):
    config = LossConfig(name=name, beta=beta)
    _, chosen, rejected = values(LOSSES[name](policy, reference, config))
    assert values(LOSSES[name](swapped(policy), swapped(reference), config))[1:] == (rejected, chosen)


@given(policy=sides, reference=sides, name=st.sampled_from(["dpo", "dpo_norm"]), beta=st.floats(0.01, 5),
       smoothing=st.floats(0, 0.49))
def test_the_loss_is_the_logistic_of_the_reported_margin(policy, reference, name, beta, smoothing):
    config = LossConfig(name=name, beta=beta, label_smoothing=smoothing)
    loss, chosen, rejected = values(LOSSES[name](policy, reference, config))
    margin = max(-500.0, min(500.0, chosen - rejected))  # e^500 still fits a float
    if margin == chosen - rejected:
        expected = (1 - smoothing) * softplus(-margin) + smoothing * softplus(margin)
        assert loss == pytest.approx(expected, rel=1e-9, abs=1e-12)
    else:
        assert loss >= 0


@given(policy=sides, reference=sums, name=st.sampled_from(["dpo", "dpo_norm", "ipo"]), shift=st.floats(-50, 50))
def test_what_policy_and_reference_share_cancels(policy, reference, name, shift):
    config = LossConfig(name=name, beta=0.3)
    counts = policy.chosen_tokens_B, policy.rejected_tokens_B
    tails = policy.chosen_tail_B, policy.rejected_tail_B
    start = PairLogps(policy.chosen_B + reference, policy.rejected_B - reference, *counts, *tails)
    moved = [PairLogps(side.chosen_B + shift * counts[0], side.rejected_B + shift * counts[1], *counts, *tails)
             for side in (policy, start)]
    expected = values(LOSSES[name](policy, start, config))
    assert values(LOSSES[name](*moved, config)) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_extreme_margins_stay_finite_with_a_finite_gradient():
    for chosen in (-1e5, 0.0):
        policy = logps(chosen, -5e4)
        policy.chosen_B.requires_grad_()
        loss = LOSSES["dpo"](policy, logps(-5e4, -5e4), LossConfig(name="dpo", beta=5.0)).losses_B
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert torch.isfinite(policy.chosen_B.grad).all()
