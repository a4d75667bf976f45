"""Losses against values worked out by hand, and the properties that define them."""

import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dpo_core.contract.loss_config import LossConfig, LossSum, LossTerm
from dpo_core.contract.objectives import OBJECTIVES, LossName, names_where
from dpo_core.loss.divergences import DIVERGENCES
from dpo_core.loss.losses import LOSSES, LossOutput, StepFacts
from dpo_core.loss.objective import build_objective, loss_and_gradient, surrogate
from dpo_core.loss.pair_logps import PairLogps

LOG2 = math.log(2)


def logps(
    chosen: float,
    rejected: float,
    chosen_tokens: float = 4,
    rejected_tokens: float = 5,
    chosen_tail: float = 0,
    rejected_tail: float = 0,
    chosen_squares: float = 0,
    rejected_squares: float = 0,
    dtype: torch.dtype = torch.float64,
) -> PairLogps:
    """One pair, B = 1."""
    return PairLogps(
        *(
            torch.tensor([x], dtype=dtype)
            for x in (
                *(chosen, rejected, chosen_tokens, rejected_tokens, chosen_tail, rejected_tail),
                *(chosen_squares, rejected_squares),
            )
        )
    )


# Sums and counts that divide into round means. Policy: chosen -8 over 4 tokens (mean -2), rejected -15 over 5 (-3).
# Reference: chosen -10 over 4 (-2.5), rejected -14 over 5 (-2.8). Rejected is longer by its fifth token: -4 and -3.
POLICY, REFERENCE = logps(-8, -15, rejected_tail=-4), logps(-10, -14, rejected_tail=-3)


def settings(name: str, **others: float) -> LossConfig:
    """The objective with what it cannot do without."""
    return LossConfig(name=name, **({"label_smoothing": 0.1} if name == "exo_pair" else {}) | others)


sums = st.floats(-300, -0.01)
counts = st.integers(1, 200)
sides = st.builds(logps, sums, sums, counts, counts)


def values(output: LossOutput) -> tuple[float, float, float]:
    return float(output.losses_B), float(output.chosen_rewards_B), float(output.rejected_rewards_B)


def softplus(x: float) -> float:
    """log(1 + e^x), which is -log sigmoid(-x)."""
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("config", "loss", "chosen_reward", "rejected_reward"),
    [
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
        # 1 - 0.3; with beta 1 the margin 3 is beyond 1
        (LossConfig(name="hinge", beta=0.1), 0.7, 0.2, -0.1),
        (LossConfig(name="hinge", beta=1.0), 0.0, 2.0, -1.0),
        # (0.9 * 0.554355 - 0.1 * 0.854355) / 0.8 = (0.498920 - 0.085436) / 0.8
        (LossConfig(name="robust", beta=0.1, label_smoothing=0.1), 0.516855, 0.2, -0.1),
        # sigmoid(0.3) = 0.574443 and its rest 0.425557: 0.574443 * (-0.554355 - log 0.9) + 0.425557 * (-0.854355 - log 0.1)
        # = 0.574443 * (-0.554355 + 0.105361) + 0.425557 * (-0.854355 + 2.302585) = -0.257921 + 0.616304
        (LossConfig(name="exo_pair", beta=0.1, label_smoothing=0.1), 0.358383, 0.2, -0.1),
        # sigmoid(-0.2) + sigmoid(-0.1) = 0.450166 + 0.475021
        (LossConfig(name="apo_zero", beta=0.1), 0.925187, 0.2, -0.1),
        # sigmoid(0.2) + sigmoid(-0.3) = 0.549834 + 0.425557
        (LossConfig(name="apo_down", beta=0.1), 0.975391, 0.2, -0.1),
        # log ratios 2 and -1 against 5 and -5: 3^2 + 4^2; against 1 and -1 with beta 0.5: 1^2 + 0^2
        (LossConfig(name="sppo_hard", beta=0.1), 25.0, 0.2, -0.1),
        (LossConfig(name="sppo_hard", beta=0.5), 1.0, 1.0, -0.5),
        # log(1 + e^-0.2) + (log(1 + e^0.2) + log(1 + e^-0.1)) / 2 = 0.598139 + (0.798139 + 0.644397) / 2
        (LossConfig(name="nca_pair", beta=0.1), 1.319407, 0.2, -0.1),
        # no earlier step: log(1 + e^-0.2) + log(1 + e^-0.1) = 0.598139 + 0.644397
        (LossConfig(name="bco_pair", beta=0.1), 1.242536, 0.2, -0.1),
        # one pair has nothing to be sorted against: dpo's value, smoothed too; paired, the margins are 7 and 4,
        # so 0.1 * 3 again
        (LossConfig(name="aot", beta=0.1), 0.554355, 0.2, -0.1),
        (LossConfig(name="aot", beta=0.1, label_smoothing=0.1), 0.584355, 0.2, -0.1),
        (LossConfig(name="aot_pair", beta=0.1), 0.554355, 0.2, -0.1),
        (LossConfig(name="aot_pair", beta=0.1, label_smoothing=0.1), 0.584355, 0.2, -0.1),
        # gate sigmoid(0.3 / 0.05 = 6) = 0.997527: 0.002473 * 0.554355 + 0.997527 * e^-0.3 = 0.001371 + 0.997527 * 0.740818
        (LossConfig(name="discopop", beta=0.1), 0.740357, 0.2, -0.1),
        # gate sigmoid(0.3 / 0.3 = 1) = 0.731059: 0.268941 * 0.554355 + 0.731059 * 0.740818 = 0.149089 + 0.541582
        (LossConfig(name="discopop", beta=0.1, discopop_tau=0.3), 0.690671, 0.2, -0.1),
        # the chosen answer is likelier than the reference finds it, so dpo's value with nothing to pay
        (LossConfig(name="dpop", beta=0.1), 0.554355, 0.2, -0.1),
        # chosen's negative log-likelihood is 2 a token; rewards are the means
        (LossConfig(name="sft"), 2.0, -2.0, -3.0),
        # a threshold that stays: log(1 + e^-0.1) + log(1 + e^-0.2), whatever the mean reward
        (LossConfig(name="bco_pair", beta=0.1, bco_threshold=0.1), 1.242536, 0.2, -0.1),
        # weight exp(-2 - 3) = 0.00673795 on hinge's 0.7 and on dpo's 0.554355, not on the likelihood that is added
        (LossConfig(name="hinge", beta=0.1, wpo_weighting=True), 0.00471657, 0.2, -0.1),
        (LossConfig(name="dpo", beta=0.1, wpo_weighting=True), 0.00373522, 0.2, -0.1),
        (LossConfig(name="dpo", beta=0.1, wpo_weighting=True, rpo_alpha=0.2), 0.40373522, 0.2, -0.1),
        # the weight is that of whole answers also where the loss looks at less: 0.00673795 * 0.575939
        (LossConfig(name="dpo", beta=0.1, wpo_weighting=True, ld_alpha=0.5), 0.00388065, 0.2, -0.05),
        # the shorter rejected answer's end counts half: log ratio -15 + 2 - (-14 + 1.5) = -0.5; margin 0.1 * 2.5;
        # log(1 + e^-0.25) = log(1.778801)
        (LossConfig(name="dpo", beta=0.1, ld_alpha=0.5), 0.575939, 0.2, -0.05),
        # the end does not count: -11 + 11 = 0; log(1 + e^-0.2)
        (LossConfig(name="dpo", beta=0.1, ld_alpha=0.0), 0.598139, 0.2, 0.0),
        # means over whole answers: 0.5 and (-13 + 12.5) / 5 = -0.1; margin 5 * 0.6; log(1 + e^-3) = log(1.049787)
        (LossConfig(name="dpo_norm", beta=5.0, ld_alpha=0.5), 0.048587, 2.5, -0.5),
        # simpo: means -2 and -13 / 5 = -2.6; 2 * (0.6 - 0.3) = 0.6; log(1 + e^-0.6) = log(1.548812)
        (LossConfig(name="simpo", beta=2.0, ld_alpha=0.5), 0.437488, -4.0, -5.2),
        # chosen's negative log-likelihood is 2 a token: 0.554355 + 0.2 * 2
        (LossConfig(name="dpo", beta=0.1, rpo_alpha=0.2), 0.954355, 0.2, -0.1),
        # both: the likelihood is that of the whole answer, 0.575939 + 0.4
        (LossConfig(name="dpo", beta=0.1, ld_alpha=0.5, rpo_alpha=0.2), 0.975939, 0.2, -0.05),
        # 0.09 + 0.5 * 2
        (LossConfig(name="ipo", beta=0.5, rpo_alpha=0.5), 1.09, 0.25, -0.1),
        # forward KL, 1 - 1/u of u = e^2 and e^-1: 1 - e^-2 = 0.864665 and 1 - e = -1.718282; margin 0.2582947;
        # log(1 + e^-0.2582947) = log(1.772367)
        (LossConfig(name="dpo", beta=0.1, f_divergence="forward_kl"), 0.572316, 0.0864665, -0.1718282),
        # Jensen-Shannon, log(2u / (1 + u)): 0.693147 - 0.126928 = 0.566219 and 0.693147 - 1.313262 = -0.620115; margin
        # 0.1186334; log(1 + e^-0.1186334) = log(1.888134)
        (LossConfig(name="dpo", beta=0.1, f_divergence="js_divergence"), 0.635589, 0.0566219, -0.0620115),
        # alpha 1/2, 2 (1 - u^-1/2): 2 (1 - e^-1) = 1.264241 and 2 (1 - e^0.5) = -1.297443; margin 0.2561684; log(1.774012)
        (LossConfig(name="dpo", beta=0.1, f_divergence="alpha_divergence"), 0.573244, 0.1264241, -0.1297443),
        # alpha 1/4, 4 (1 - u^-1/4): 4 (1 - e^-0.5) = 1.573877 and 4 (1 - e^0.25) = -1.136102; margin 0.2709979;
        # log(1.762618)
        (
            LossConfig(name="dpo", beta=0.1, f_divergence="alpha_divergence", alpha_divergence_coef=0.25),
            0.566800,
            0.1573877,
            -0.1136102,
        ),
        # per token after the divergence of whole answers: 0.864665 / 4 and -1.718282 / 5, times 5: margin 2.799113;
        # log(1 + e^-2.799113) = log(1.060864)
        (LossConfig(name="dpo_norm", beta=5.0, f_divergence="forward_kl"), 0.059084, 1.080831, -1.718282),
        # hinge: 1 - 0.2582947
        (LossConfig(name="hinge", beta=0.1, f_divergence="forward_kl"), 0.7417053, 0.0864665, -0.1718282),
        # ipo: 0.864665 / 4 + 1.718282 / 5 = 0.559822 against 1: (-0.440178)^2
        (LossConfig(name="ipo", beta=0.5, f_divergence="forward_kl"), 0.193756, 0.1080831, -0.1718282),
    ],
    ids=lambda value: (
        "-".join(f"{name}={setting}" for name, setting in value.model_dump(exclude_defaults=True).items())
        if isinstance(value, LossConfig)
        else ""
    ),
)
def test_a_pair_worked_out_by_hand(config, loss, chosen_reward, rejected_reward):
    output = values(build_objective(config)(POLICY, REFERENCE))
    assert output == pytest.approx((loss, chosen_reward, rejected_reward), abs=2e-6)


def batch(*pairs: PairLogps) -> PairLogps:
    return PairLogps.joined(pairs)


# Three pairs whose log ratios are: chosen 2, -1, 0.5; rejected 1, -2, 3. The policy's margins are 1, 1, -3.5 and the
# reference's 0, 0, -1.
THREE = (
    batch(logps(-8, -9), logps(-11, -12), logps(-9.5, -6)),
    batch(logps(-10, -10), logps(-10, -10), logps(-10, -9)),
)


@pytest.mark.parametrize(
    ("name", "losses"),
    [
        # by rank: -1 against -2, 0.5 against 1, 2 against 3: log(1 + e^-1), log(1 + e^0.5), log(1 + e^1)
        ("aot", [0.313262, 0.974077, 1.313262]),
        # by rank: -3.5 against -1, 1 against 0, 1 against 0: log(1 + e^2.5), log(1 + e^-1) twice
        ("aot_pair", [2.578890, 0.313262, 0.313262]),
        # pair by pair: 2 - 1, -1 + 2, 0.5 - 3
        ("dpo", [0.313262, 0.313262, 2.578890]),
    ],
)
def test_what_is_sorted_is_compared_by_rank(name, losses):
    output = build_objective(LossConfig(name=name, beta=1.0))(*THREE)
    assert output.losses_B.tolist() == pytest.approx(losses, abs=1e-6)
    assert output.chosen_rewards_B.tolist() == pytest.approx([2, -1, 0.5])  # rewards stay with their pairs
    assert output.rejected_rewards_B.tolist() == pytest.approx([1, -2, 3])


def test_bco_classifies_against_the_mean_reward():
    # rewards 0.2 and -0.1 against a threshold of 0.05: 0.15 on either side; 2 * log(1 + e^-0.15) = 2 * 0.620957
    output = values(
        build_objective(LossConfig(name="bco_pair", beta=0.1), StepFacts(mean_reward=0.05))(POLICY, REFERENCE)
    )
    assert output == pytest.approx((1.241914, 0.2, -0.1), abs=1e-6)


def test_only_bco_reads_the_mean_reward():
    for name, row in LOSSES.items():
        moved = [
            values(build_objective(settings(name, beta=0.4), StepFacts(mean_reward=mean))(POLICY, REFERENCE))[
                0
            ]
            for mean in (0.0, 0.3)
        ]
        assert (moved[0] != moved[1]) == row.traits.mean_reward == (name == "bco_pair")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dpo", LOG2),
        ("dpo_norm", LOG2),
        ("ipo", 1 / (2 * 0.5) ** 2),  # (0 - 1 / (2 beta))^2 with beta 0.5
        ("wpo", math.exp(-10 / 4 - 14 / 5) * LOG2),  # the reference's means are the policy's
        ("hinge", 1),
        ("robust", LOG2),
        ("apo_zero", 1),
        ("apo_down", 1),
        ("exo_pair", -LOG2 - (math.log(0.9) + math.log(0.1)) / 2),
        ("sppo_hard", 2),  # 1^2 + 1^2 with beta 0.5
        ("nca_pair", 2 * LOG2),
        ("bco_pair", 2 * LOG2),
        ("aot", LOG2),
        ("aot_pair", LOG2),
        ("discopop", (LOG2 + 1) / 2),
        ("dpop", LOG2),
    ],
)
def test_a_policy_that_is_the_reference_has_no_rewards_and_the_loss_of_a_zero_margin(name, expected):
    output = values(LOSSES[name](REFERENCE, REFERENCE, settings(name, beta=0.5)))
    assert output == pytest.approx((expected, 0, 0), abs=1e-12)


@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence", "alpha_divergence"])
@pytest.mark.parametrize("name", names_where("any_divergence"))
def test_rewards_of_any_divergence_are_0_at_the_reference(name, divergence):
    output, plain = (
        values(LOSSES[name](REFERENCE, REFERENCE, settings(name, beta=0.5, f_divergence=of)))
        for of in (divergence, "reverse_kl")
    )
    assert output == pytest.approx((plain[0], 0, 0), abs=1e-12)


@pytest.mark.parametrize(("coefficient", "limit"), [(1e-6, "reverse_kl"), (1 - 1e-6, "forward_kl")])
def test_the_alpha_divergence_lies_between_the_two_kl(coefficient, limit):
    alpha = LossConfig(
        name="dpo", beta=0.5, f_divergence="alpha_divergence", alpha_divergence_coef=coefficient
    )
    expected = values(LOSSES["dpo"](POLICY, REFERENCE, LossConfig(name="dpo", beta=0.5, f_divergence=limit)))
    assert values(LOSSES["dpo"](POLICY, REFERENCE, alpha)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("extra", [{}, {"ld_alpha": 0.5}, {"rpo_alpha": 0.5}])
def test_simpo_needs_no_reference(extra):
    objective = build_objective(LossConfig(name="simpo", beta=2.0, **extra))
    assert values(objective(POLICY, None)) == values(objective(POLICY, REFERENCE))


def test_dpop_pays_for_a_chosen_answer_that_was_lost():
    # log ratios -2 and 1, margin 0.1 * -3; lost 2 nats, 0.1 * 5 * 2 = 1: log(1 + e^1.3) = log(4.669297) = 1.541008
    lost = LossConfig(name="dpop", beta=0.1, dpop_lambda=5.0)
    output = values(LOSSES["dpop"](REFERENCE, POLICY, lost))
    assert output == pytest.approx((1.541008, -0.2, 0.1), abs=2e-6)
    free = lost.model_copy(update={"dpop_lambda": 0.0})
    assert values(LOSSES["dpop"](REFERENCE, POLICY, free)) == values(
        LOSSES["dpo"](REFERENCE, POLICY, LossConfig(name="dpo", beta=0.1))
    )


def test_sft_averages_over_tokens_and_not_over_pairs():
    """Two answers of 2 nats a token over 4 tokens and 1 nat a token over 16: 24 nats over 20 tokens, not 1.5."""
    pairs = batch(logps(-8, -1), logps(-16, -1, chosen_tokens=16))
    output = LOSSES["sft"](pairs, None, LossConfig(name="sft"))
    assert float(output.losses_B.mean()) == pytest.approx(24 / 20)
    in_parts = [
        LOSSES["sft"](pairs[i : i + 1], None, LossConfig(name="sft"), StepFacts(chosen_tokens=10)).losses_B
        for i in range(2)
    ]
    assert torch.cat(in_parts).tolist() == output.losses_B.tolist()


@pytest.mark.parametrize(
    ("config", "margin", "loss"),
    [
        # margin 0.3 against 0.5: log(1 + e^0.2); smoothing 0.1: 0.9 * that + 0.1 * log(1 + e^-0.2)
        (LossConfig(name="dpo", beta=0.1), 0.5, 0.798139),
        (LossConfig(name="dpo", beta=0.1, label_smoothing=0.1), 0.5, 0.778139),
        (LossConfig(name="dpo", beta=0.1), 0.0, 0.554355),
        # 3.5 against 3.3: log(1 + e^-0.2)
        (LossConfig(name="dpo_norm", beta=5.0), 3.3, 0.598139),
        # 0.5 - 0.3, and a margin that is reached
        (LossConfig(name="hinge", beta=0.1), 0.5, 0.2),
        (LossConfig(name="hinge", beta=0.1), 0.25, 0.0),
        # 0.35 against 0.25, by beta 0.5: 0.2^2; without one 0.35 against 1/2
        (LossConfig(name="ipo", beta=0.5), 0.25, 0.04),
        (LossConfig(name="ipo", beta=0.5), math.nan, 0.09),
        (LossConfig(name="hinge", beta=0.1), math.nan, 0.7),
        (LossConfig(name="dpo_norm", beta=5.0), math.nan, 0.029750),
        # a sum: the terms that aim at a margin take it. 0.798139 + 2 * 2
        (LossSum(terms=(LossTerm(name="dpo", beta=0.1), LossTerm(name="sft", weight=2))), 0.5, 4.798139),
        # what is added is added to that: 0.798139 + 0.2 * 2; weighted by 0.00673795; a shortened 0.25 against 0.45
        (LossConfig(name="dpo", beta=0.1, rpo_alpha=0.2), 0.5, 1.198139),
        (LossConfig(name="dpo", beta=0.1, wpo_weighting=True), 0.5, 0.00537782),
        (LossConfig(name="dpo", beta=0.1, ld_alpha=0.5), 0.45, 0.798139),
    ],
    ids=str,
)
def test_a_margin_of_a_pair_s_own_takes_the_place_of_the_objective_s(config, margin, loss):
    output = build_objective(config)(POLICY, REFERENCE, torch.tensor([margin], dtype=torch.float64))
    plain = build_objective(config)(POLICY, REFERENCE)
    assert values(output)[0] == pytest.approx(loss, abs=2e-6)
    assert values(output)[1:] == values(plain)[1:]  # rewards stay as they are


def test_the_objectives_that_take_a_margin_are_those_of_the_table():
    taken = names_where("target")
    assert taken == ["dpo", "dpo_norm", "hinge", "ipo"]
    for name in LOSSES:
        config = settings(name, beta=0.4)
        moved = values(build_objective(config)(POLICY, REFERENCE, torch.tensor([9.0])))[0]
        assert (moved != values(build_objective(config)(POLICY, REFERENCE))[0]) == (name in taken)
        assert config.ignores_margins == (name not in taken)
        if name in taken:  # the traits' figure is the function's own
            own = torch.tensor([OBJECTIVES[name].target], dtype=torch.float64)
            assert values(build_objective(config)(POLICY, REFERENCE, own)) == values(
                build_objective(config)(POLICY, REFERENCE)
            )
    text = " ".join(Path("docs/losses.md").read_text().split())
    assert all(f"| `{name}` | $" in text for name in taken)


MPO = LossSum(
    terms=(
        LossTerm(name="dpo", beta=0.1, weight=0.8),
        LossTerm(name="bco_pair", beta=0.1, weight=0.2),
        LossTerm(name="sft", weight=0.5),
    )
)


def test_a_sum_of_losses_by_hand():
    # 0.8 * 0.554355 + 0.2 * 1.242536 + 0.5 * 2, and the threshold reaches its term: 0.2 * (1.241914 - 1.242536) less
    assert values(build_objective(MPO)(POLICY, REFERENCE)) == pytest.approx((1.691991, 0.2, -0.1), abs=2e-6)
    later = values(build_objective(MPO, StepFacts(mean_reward=0.05))(POLICY, REFERENCE))
    assert later == pytest.approx((1.691867, 0.2, -0.1), abs=2e-6)


def test_a_sum_needs_and_is_what_its_terms_need_and_are():
    assert MPO.needs_reference
    assert MPO.title == "0.8 dpo + 0.2 bco_pair + 0.5 sft"
    assert not LossSum(terms=(LossTerm(name="simpo"), LossTerm(name="sft"))).needs_reference
    assert LossSum(terms=(LossTerm(name="dpo"), LossTerm(name="aot"))).any_is("whole_batch")
    first = LossSum(terms=(LossTerm(name="sft"), LossTerm(name="dpo_norm"), LossTerm(name="dpo")))
    assert first.rewarding.name == "dpo_norm"
    assert MPO.rewarding.name == "bco_pair"  # its threshold is the mean of what is reported
    with pytest.raises(ValidationError, match="names bco_pair twice"):
        LossSum(terms=(LossTerm(name="bco_pair"), LossTerm(name="bco_pair", beta=1.0)))


@given(policy=sides, reference=sides, weight=st.floats(0.01, 10), name=st.sampled_from(sorted(LOSSES)))
def test_a_sum_of_one_term_is_the_objective_times_its_weight(policy, reference, weight, name):
    config = settings(name)
    term = LossTerm(**config.model_dump(), weight=weight)
    plain = values(build_objective(config)(policy, reference))
    summed = values(build_objective(LossSum(terms=(term,)))(policy, reference))
    assert summed == pytest.approx((weight * plain[0], *plain[1:]), rel=1e-12)


def test_robust_without_flips_is_dpo():
    by_name = [
        values(LOSSES[name](POLICY, REFERENCE, LossConfig(name=name, beta=0.7))) for name in ("dpo", "robust")
    ]
    assert by_name[0] == by_name[1]


def test_the_mean_of_robust_over_flips_is_dpo():
    """What defines it: with share s of the labels flipped, its expectation is the clean loss."""
    s, clean = 0.2, values(LOSSES["dpo"](POLICY, REFERENCE, LossConfig(name="dpo", beta=0.7)))[0]
    config = LossConfig(name="robust", beta=0.7, label_smoothing=s)
    kept, flipped = (
        values(LOSSES["robust"](*sides, config))[0]
        for sides in ((POLICY, REFERENCE), (swapped(POLICY), swapped(REFERENCE)))
    )
    assert (1 - s) * kept + s * flipped == pytest.approx(clean, rel=1e-12)


def test_dpo_norm_of_one_token_answers_is_dpo():
    policy, reference = logps(-1.0, -2.0, 1, 1), logps(-1.5, -1.0, 1, 1)
    by_name = [
        values(LOSSES[name](policy, reference, LossConfig(name=name, beta=0.7)))
        for name in ("dpo", "dpo_norm")
    ]
    assert by_name[0] == by_name[1]


# d loss / d chosen sum at the pair above. The logistic's slope is -sigmoid(-x): dpo -0.1 * sigmoid(-0.3) = -0.0425557;
# dpo_norm -5 / 4 tokens * sigmoid(-3.5) = -0.0366402; simpo -2 / 4 * sigmoid(-1.4) = -0.0989082;
# ipo 2 * (0.7 - 1) / 4 = -0.15; wpo is dpo times 0.00673795, the weight being no part of the gradient.
@pytest.mark.parametrize(
    ("name", "beta", "chosen_slope", "rejected_slope"),
    [
        ("dpo", 0.1, -0.0425557, 0.0425557),
        ("dpo_norm", 5.0, -0.0366402, 0.0366402 * 4 / 5),
        ("simpo", 2.0, -0.0989082, 0.0989082 * 4 / 5),
        ("ipo", 0.5, -0.15, 0.15 * 4 / 5),
        ("wpo", 0.1, -0.0425557 * 0.00673795, 0.0425557 * 0.00673795),
    ],
)
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


# Tails of the three pairs' chosen and rejected answers, where a test wants some.
TAILS = torch.tensor([[-1.0, -2.0, 0.0], [0.0, 0.0, -3.0]], dtype=torch.float64)
FINITE_DIFFERENCES = [
    *(
        settings(name, beta=0.4) for name in sorted(set(LOSSES) - {"wpo"})
    ),  # wpo's weight is no part of its gradient
    *(
        settings("dpo", beta=0.4, f_divergence=name)
        for name in ("forward_kl", "js_divergence", "alpha_divergence")
    ),
    settings("dpo_norm", beta=0.4, ld_alpha=0.3, rpo_alpha=0.7),
]


@pytest.mark.parametrize(
    "config", FINITE_DIFFERENCES, ids=lambda of: f"{of.name}-{of.f_divergence}-{of.ld_alpha}"
)
def test_gradients_are_those_of_finite_differences(config):
    objective = build_objective(config, StepFacts(mean_reward=0.1))
    policy, reference = THREE

    def losses(chosen_B, rejected_B, chosen_tail_B, rejected_tail_B):
        return objective(
            PairLogps(
                chosen_B,
                rejected_B,
                policy.chosen_tokens_B,
                policy.rejected_tokens_B,
                chosen_tail_B,
                rejected_tail_B,
            ),
            reference,
        ).losses_B

    moved = [
        values + offset
        for values, offset in zip(
            (policy.chosen_B, policy.rejected_B, *TAILS),
            (torch.tensor([0.1, 0.2, -0.1]), torch.tensor([0.3, -0.2, 0.05]), 0.0, 0.0),
            strict=True,
        )
    ]  # away from ties and kinks
    assert torch.autograd.gradcheck(losses, [side.double().requires_grad_() for side in moved])


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_pairs_of_a_batch_touch_each_other_where_the_table_says_so(name):
    objective = build_objective(settings(name, beta=0.4))
    alone = [values(objective(*(side[number : number + 1] for side in THREE)))[0] for number in range(3)]
    together = objective(*THREE).losses_B.tolist()
    assert (together != pytest.approx(alone)) == OBJECTIVES[name].whole_batch


@pytest.mark.parametrize(
    "config",
    [
        settings("dpo_norm", beta=2.0),
        settings("aot", beta=0.5),
        settings("aot_pair", beta=0.5),
        settings("aot", beta=0.5, ld_alpha=0.3, rpo_alpha=0.4),
    ],
    ids=lambda of: f"{of.name}-{of.ld_alpha}",
)
def test_a_batch_in_parts_has_the_gradient_of_the_whole(config):
    """Log-probabilities as a function of weights w: the gradient by slopes, one pair at a time, is that of the loss."""
    policy, reference = THREE
    w = torch.tensor([0.7, 1.1], dtype=torch.float64, requires_grad=True)

    def scored() -> PairLogps:
        return PairLogps(
            policy.chosen_B * w[0],
            policy.rejected_B * w[1] ** 2,
            policy.chosen_tokens_B,
            policy.rejected_tokens_B,
            TAILS[0] * w[0],
            TAILS[1] * w[1] ** 2,
        )

    objective = build_objective(config)
    (expected,) = torch.autograd.grad(objective(scored(), reference).losses_B.sum(), w)
    output, slope = loss_and_gradient(objective, scored(), reference)
    assert not output.losses_B.requires_grad
    in_parts = torch.zeros_like(w)
    for i in range(3):
        in_parts += torch.autograd.grad(surrogate(scored(), slope)[i], w)[0]
    assert in_parts.tolist() == pytest.approx(expected.tolist(), rel=1e-12)
    assert expected.abs().min() > 0.01


@pytest.mark.parametrize(
    ("config", "loss"),
    [
        (LossConfig(name="wpo", beta=0.1), 0.12369326),
        (LossConfig(name="dpo", beta=0.1, wpo_weighting=True), 0.12369326),
        # hinge's 0.7
        (LossConfig(name="hinge", beta=0.1, wpo_weighting=True), 0.15619111),
        # of whole answers also where the loss looks at less: 0.575939
        (LossConfig(name="dpo", beta=0.1, wpo_weighting=True, ld_alpha=0.5), 0.12850934),
        # not the likelihood that is added, 0.2 * 2
        (LossConfig(name="dpo", beta=0.1, wpo_weighting=True, rpo_alpha=0.2), 0.52369326),
    ],
    ids=str,
)
def test_weights_by_the_policy_are_beside_what_it_expects_of_its_own_answers(config, loss):
    """Squares of -6 over 4 tokens (-1.5 each) and -10 over 5 (-2): exp(-2 + 1.5 - 3 + 2) = 0.22313016, times 0.554355."""
    policy = logps(-8, -15, rejected_tail=-4, chosen_squares=-6, rejected_squares=-10)
    output = values(build_objective(config)(policy, REFERENCE))
    assert output[0] == pytest.approx(loss, abs=2e-6)
    # a policy that finds its answers as likely as answers of its own weighs 1
    own = logps(-8, -15, chosen_squares=-8, rejected_squares=-15)
    plain = LossConfig(name="dpo", beta=0.1)
    assert values(build_objective(LossConfig(name="wpo", beta=0.1))(own, REFERENCE)) == pytest.approx(
        values(build_objective(plain)(own, REFERENCE))
    )


def swapped(side: PairLogps) -> PairLogps:
    return PairLogps(
        side.rejected_B,
        side.chosen_B,
        side.rejected_tokens_B,
        side.chosen_tokens_B,
        side.rejected_tail_B,
        side.chosen_tail_B,
        side.rejected_squares_B,
        side.chosen_squares_B,
    )


@given(policy=sides, reference=sides, name=st.sampled_from(sorted(LOSSES)), beta=st.floats(0.01, 5))
def test_swapping_chosen_and_rejected_swaps_the_rewards(policy, reference, name, beta):
    config = settings(name, beta=beta)
    _, chosen, rejected = values(LOSSES[name](policy, reference, config))
    assert values(LOSSES[name](swapped(policy), swapped(reference), config))[1:] == (rejected, chosen)


@given(
    policy=sides,
    reference=sides,
    name=st.sampled_from(["dpo", "dpo_norm"]),
    beta=st.floats(0.01, 5),
    smoothing=st.floats(0, 0.49),
)
def test_the_loss_is_the_logistic_of_the_reported_margin(policy, reference, name, beta, smoothing):
    config = LossConfig(name=name, beta=beta, label_smoothing=smoothing)
    loss, chosen, rejected = values(LOSSES[name](policy, reference, config))
    margin = max(-500.0, min(500.0, chosen - rejected))  # e^500 still fits a float
    if margin == chosen - rejected:
        expected = (1 - smoothing) * softplus(-margin) + smoothing * softplus(margin)
        assert loss == pytest.approx(expected, rel=1e-9, abs=1e-12)
    else:
        assert loss >= 0


@given(
    policy=sides, reference=sums, name=st.sampled_from(["dpo", "dpo_norm", "ipo"]), shift=st.floats(-50, 50)
)
def test_what_policy_and_reference_share_cancels(policy, reference, name, shift):
    config = LossConfig(name=name, beta=0.3)
    counts = policy.chosen_tokens_B, policy.rejected_tokens_B
    tails = policy.chosen_tail_B, policy.rejected_tail_B
    start = PairLogps(policy.chosen_B + reference, policy.rejected_B - reference, *counts, *tails)
    moved = [
        PairLogps(side.chosen_B + shift * counts[0], side.rejected_B + shift * counts[1], *counts, *tails)
        for side in (policy, start)
    ]
    expected = values(LOSSES[name](policy, start, config))
    assert values(LOSSES[name](*moved, config)) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("divergence", sorted(DIVERGENCES))
def test_extreme_margins_stay_finite_with_a_finite_gradient(name, divergence):
    """In float32, as in training: chosen or rejected 5e4 nats less likely than the reference finds them."""
    if divergence != "reverse_kl" and not OBJECTIVES[name].any_divergence:
        return
    for chosen, rejected in ((-1e5, -5e4), (0.0, -5e4), (-5e4, -1e5), (-5e4, 0.0)):
        policy = logps(chosen, rejected, dtype=torch.float32)
        policy.chosen_B.requires_grad_()
        policy.rejected_B.requires_grad_()
        config = settings(name, beta=0.1, f_divergence=divergence)
        loss = LOSSES[name](policy, logps(-5e4, -5e4, dtype=torch.float32), config).losses_B
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert torch.isfinite(policy.chosen_B.grad).all()
        if name != "sft":  # which looks at the chosen answer alone
            assert torch.isfinite(policy.rejected_B.grad).all()


@pytest.mark.parametrize(
    ("config", "advice"),
    [
        (
            {"name": "ipo", "label_smoothing": 0.1},
            "ipo defines no label smoothing; set loss.label_smoothing to 0 or",
        ),
        ({"name": "bco_pair", "label_smoothing": 0.1}, "bco_pair defines no label smoothing"),
        ({"name": "exo_pair"}, "exo_pair needs label smoothing, .* set loss.label_smoothing to 0.001"),
        (
            {"name": "aot", "f_divergence": "forward_kl"},
            "aot is defined for reverse_kl alone; set loss.f_divergence to",
        ),
        ({"name": "simpo", "f_divergence": "js_divergence"}, "simpo is defined for reverse_kl alone"),
        (
            {"name": "wpo", "ld_alpha": 0.5},
            "wpo weights pairs by whole answers, .* set loss.ld_alpha to 1 or choose dpo",
        ),
        (
            {"name": "dpo", "alpha_divergence_coef": 0.3},
            "alpha_divergence_coef means nothing to reverse_kl; leave it out",
        ),
        (
            {"name": "dpo", "gamma_beta_ratio": 0.5},
            "gamma_beta_ratio means nothing to dpo; leave it out or choose simpo",
        ),
        (
            {"name": "dpo", "dpop_lambda": 5.0},
            "dpop_lambda means nothing to dpo; leave it out or choose dpop",
        ),
        ({"name": "dpo", "bco_threshold": 0.0}, "bco_threshold means nothing to dpo; .* choose bco_pair"),
        ({"name": "sft", "ld_alpha": 0.5}, "sft looks at one answer alone"),
        ({"name": "aot", "wpo_weighting": True}, "aot sorts a batch, so that its losses are no pair's"),
        ({"name": "wpo", "wpo_weighting": True}, "wpo weighs pairs so by itself"),
        ({"name": "tr_dpo"}, "TR-DPO moves the reference .* Train in rounds instead"),
        (
            {"name": "dpo", "discopop_tau": 0.5},
            "discopop_tau means nothing to dpo; leave it out or choose discopop",
        ),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_settings_that_do_not_fit_are_refused_with_advice(config, advice):
    with pytest.raises(ValidationError, match=advice):
        LossConfig(**config)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_job_that_states_every_setting_is_read_back(name):
    config = settings(name)
    assert LossConfig(**config.model_dump()) == config


def test_the_functions_have_the_traits_that_are_told_of_them():
    assert list(LOSSES) == list(OBJECTIVES) == list(get_args(LossName))
    twice = [
        replace(side, chosen_tokens_B=2 * side.chosen_tokens_B, rejected_tokens_B=2 * side.rejected_tokens_B)
        for side in (POLICY, REFERENCE)
    ]
    for name, traits in OBJECTIVES.items():
        config = settings(name, beta=0.4)
        _, *rewards = values(LOSSES[name](POLICY, REFERENCE, config))
        _, *of_longer = values(LOSSES[name](*twice, config))
        assert rewards == pytest.approx([(2 if traits.per_token else 1) * reward for reward in of_longer])
        if not traits.needs_reference:
            assert values(LOSSES[name](POLICY, None, config))[1:] == tuple(rewards)
        else:
            with pytest.raises(AttributeError):
                LOSSES[name](POLICY, None, config)
        if traits.smoothing != "no":
            plain, smoothed = (
                values(LOSSES[name](POLICY, REFERENCE, settings(name, beta=0.4, label_smoothing=share)))[0]
                for share in (0.1, 0.2)
            )
            assert plain != smoothed
        with_other_values = {setting: 0.7 for setting in traits.own_settings}
        # dpop's setting is the price of a chosen answer that was lost, as it is the other way round
        plain, other = (
            values(LOSSES[name](REFERENCE, POLICY, settings(name, beta=0.4, **own)))[0]
            for own in ({}, with_other_values)
        )
        assert (plain != other) == bool(traits.own_settings)


def test_the_table_of_the_docs_is_that_of_the_traits():
    """Unit, usual beta, reference and smoothing of each line, and the objectives that f-divergences are for."""
    text = Path("docs/losses.md").read_text()
    lines = {
        cells[1].split("`")[1]: cells
        for line in text.splitlines()
        if line.startswith("| `")
        and "loss.name" not in line
        and len(cells := [cell.strip() for cell in line.split("|")]) == 11
    }
    assert list(lines) == list(OBJECTIVES)
    for name, (_, _, _, unit, beta, source, reference, smoothing, *_) in lines.items():
        traits = OBJECTIVES[name]
        assert (name, unit) == (name, f"β × nats per {'token' if traits.per_token else 'answer'}")
        assert (name, beta, source) == (name, f"{traits.usual_beta:g}", traits.beta_source)
        assert (name, reference) == (name, "yes" if traits.needs_reference else "no")
        assert (name, smoothing.split(",")[0]) == (
            name,
            {"required": "must be set"}.get(traits.smoothing, traits.smoothing),
        )
    assert f"`{', '.join(name for name in OBJECTIVES if OBJECTIVES[name].any_divergence)}`" in " ".join(
        text.split()
    )
