"""Losses and gradients against what TRL's trainers compute on the very same random log-probabilities.

TRL's own ``_compute_loss`` runs (for simpo its CPOTrainer's ``get_batch_loss_metrics``); only its models are replaced, by
tables of log-probabilities per token, so that values of any spread can be asked for. What it needs besides is set as its
constructor sets it.
"""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from trl import DPOTrainer
from trl.experimental.cpo import CPOTrainer

from dpo_core.contract.loss_config import LossConfig, LossSum, LossTerm
from dpo_core.engine.distributed import start_accelerator
from dpo_core.loss.losses import LOSSES
from dpo_core.loss.objective import build_objective
from dpo_core.loss.pair_logps import PairLogps

pytestmark = pytest.mark.integration

NUM_PAIRS, LONGEST, PROMPT = 8, 12, 3


def table(logps_ST: Tensor, squares_ST: Tensor | None = None):
    """A model that answers with these log-probabilities per token, whatever it is asked, and these sums of squares."""
    zeros_ST = torch.zeros_like(logps_ST)
    return lambda **inputs: SimpleNamespace(
        log_probs=logps_ST,
        entropy=zeros_ST,
        mean_logits=zeros_ST,
        is_top1=zeros_ST > 0,
        log_sum_sq_probs=zeros_ST if squares_ST is None else squares_ST,
    )


class Untouched(torch.nn.Module):
    """Asked for its mode alone."""

    is_gradient_checkpointing = False


def trl_loss(
    policy_ST: Tensor,
    reference_ST: Tensor,
    trained_ST: Tensor,
    beta: float,
    loss_types: list[str],
    weights: list[float],
    **settings: object,
) -> Tensor:
    """The mean loss of a batch, chosen answers first, then rejected; S = 2 * NUM_PAIRS sequences."""
    trainer = DPOTrainer.__new__(DPOTrainer)
    defaults = {
        "accelerator": start_accelerator(),
        "model": Untouched(),
        "args": SimpleNamespace(
            discopop_tau=settings.pop("discopop_tau", 0.05), gradient_checkpointing_kwargs=None
        ),
        "ref_model": table(reference_ST),
        "precompute_ref_logps": False,
        "aux_loss_enabled": False,
        "beta": beta,
        "loss_types": loss_types,
        "loss_weights": weights,
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "label_smoothing": 0.0,
        "use_weighting": False,
        "_tp_size": 1,
        "_total_train_tokens": 0,
        "_metrics": {"train": defaultdict(list)},
    }
    for name, value in (defaults | settings).items():
        setattr(trainer, name, value)
    mask_ST = torch.nn.functional.pad(trained_ST, (1, 0))  # the first token is predicted by nothing
    inputs = {
        "input_ids": torch.zeros_like(mask_ST),
        "attention_mask": torch.ones_like(mask_ST),
        "completion_mask": mask_ST,
    }
    return trainer._compute_loss(table(policy_ST, squares_of(policy_ST)), inputs, return_outputs=False)


def squares_of(logps_ST: Tensor) -> Tensor:
    """The log of a sum of squared probabilities at each place: any value from twice that of the token up to 0."""
    return -1.5 * logps_ST.detach().flip(1).abs() * (1 - logps_ST.detach().exp())


def pair_logps(logps_ST: Tensor, trained_ST: Tensor) -> PairLogps:
    """Sums, counts and tails of the same tokens."""
    chosen_BT, rejected_BT = logps_ST.chunk(2)
    counts_S = trained_ST.sum(dim=1)
    shorter_B = torch.minimum(*counts_S.chunk(2))
    is_tail_ST = trained_ST.cumsum(dim=1) > torch.cat([shorter_B, shorter_B])[:, None]
    chosen_tail_BT, rejected_tail_BT = (logps_ST * is_tail_ST).chunk(2)
    return PairLogps(
        chosen_BT.sum(1),
        rejected_BT.sum(1),
        *counts_S.float().chunk(2),
        chosen_tail_BT.sum(1),
        rejected_tail_BT.sum(1),
        *(squares_of(logps_ST) * trained_ST).sum(1).chunk(2),
    )


def trl_simpo_loss(logits_STV: Tensor, trained_ST: Tensor, config: LossConfig) -> Tensor:
    """The mean loss that TRL's CPOTrainer takes from a model's logits; each trained token is word 0."""
    trainer = CPOTrainer.__new__(CPOTrainer)
    for name, value in {
        "accelerator": start_accelerator(),
        "is_encoder_decoder": False,
        "pad_token_id": 0,
        "aux_loss_enabled": False,
        "cpo_alpha": 0.0,
        "alpha": 0.0,
        "loss_type": "simpo",
        "beta": config.beta,
        "simpo_gamma": config.beta * config.gamma_beta_ratio,
        "label_smoothing": config.label_smoothing,
    }.items():
        setattr(trainer, name, value)
    labels_ST = torch.nn.functional.pad(torch.where(trained_ST > 0, 0, -100), (1, 0), value=-100)
    logits_STV = torch.nn.functional.pad(logits_STV, (0, 0, 0, 1))  # the last token predicts nothing
    batch = {
        f"{side}_{name}": values
        for name, both in (
            ("labels", labels_ST),
            ("input_ids", torch.zeros_like(labels_ST)),
            ("attention_mask", torch.ones_like(labels_ST)),
        )
        for side, values in zip(("chosen", "rejected"), both.chunk(2), strict=True)
    }
    return trainer.get_batch_loss_metrics(lambda ids, **others: SimpleNamespace(logits=logits_STV), batch)[0]


CASES = [
    (LossConfig(name="dpo", beta=0.1), "sigmoid", {}),
    (LossConfig(name="dpo_norm", beta=5.0), "sigmoid_norm", {}),
    (LossConfig(name="ipo", beta=0.1), "ipo", {}),
    (LossConfig(name="wpo", beta=0.1), "sigmoid", {"use_weighting": True}),
    (LossConfig(name="hinge", beta=0.1), "hinge", {}),
    (LossConfig(name="robust", beta=0.1, label_smoothing=0.1), "robust", {"label_smoothing": 0.1}),
    (LossConfig(name="exo_pair", beta=0.1, label_smoothing=1e-3), "exo_pair", {"label_smoothing": 1e-3}),
    (LossConfig(name="apo_zero", beta=0.1), "apo_zero", {}),
    (LossConfig(name="apo_down", beta=0.1), "apo_down", {}),
    (LossConfig(name="sppo_hard", beta=0.1), "sppo_hard", {}),
    (LossConfig(name="nca_pair", beta=0.1), "nca_pair", {}),
    (LossConfig(name="bco_pair", beta=0.1), "bco_pair", {}),
    (LossConfig(name="aot", beta=0.1), "aot_unpaired", {}),
    (LossConfig(name="aot", beta=0.1, label_smoothing=0.1), "aot_unpaired", {"label_smoothing": 0.1}),
    (LossConfig(name="aot_pair", beta=0.1), "aot", {}),
    (LossConfig(name="aot_pair", beta=0.1, label_smoothing=0.1), "aot", {"label_smoothing": 0.1}),
    (LossConfig(name="sft"), "sft", {}),
    (LossConfig(name="discopop", beta=0.05), "discopop", {}),
    (LossConfig(name="discopop", beta=0.05, discopop_tau=0.5), "discopop", {"discopop_tau": 0.5}),
    *(
        (
            LossConfig(name=ours, beta=0.1, f_divergence=divergence, **smoothing),
            theirs,
            {"f_divergence_type": divergence} | smoothing,
        )
        for ours, theirs, smoothing in (
            ("dpo", "sigmoid", {}),
            ("dpo_norm", "sigmoid_norm", {}),
            ("ipo", "ipo", {}),
            ("hinge", "hinge", {}),
            ("robust", "robust", {"label_smoothing": 0.1}),
            ("exo_pair", "exo_pair", {"label_smoothing": 0.01}),
            ("discopop", "discopop", {}),
        )
        for divergence in ("forward_kl", "js_divergence", "alpha_divergence")
    ),
    (
        LossConfig(name="dpo", beta=0.1, f_divergence="alpha_divergence", alpha_divergence_coef=0.2),
        "sigmoid",
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.8},
    ),  # theirs is 1 - ours
    *(
        (LossConfig(name=ours, beta=0.1, ld_alpha=alpha), theirs, {"ld_alpha": alpha})
        for ours, theirs in (
            ("dpo", "sigmoid"),
            ("dpo_norm", "sigmoid_norm"),
            ("aot", "aot_unpaired"),
            ("sppo_hard", "sppo_hard"),
        )
        for alpha in (0.0, 0.4)
    ),
]


def draw(seed: int, equally_long: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Random log-probabilities of policy and reference, and the mask of trained tokens, all [S, T]."""
    generator = torch.Generator().manual_seed(seed)
    counts_S = (
        torch.full((2 * NUM_PAIRS,), 5)
        if equally_long
        else torch.randint(1, LONGEST, (2 * NUM_PAIRS,), generator=generator)
    )
    places_T = torch.arange(PROMPT + LONGEST)
    trained_ST = ((places_T >= PROMPT) & (places_T < PROMPT + counts_S[:, None])).long()
    policy_ST, reference_ST = (
        -3 * torch.rand(trained_ST.shape, generator=generator) * trained_ST for _ in range(2)
    )
    return policy_ST, reference_ST, trained_ST


def both(
    config: LossConfig | LossSum,
    seed: int,
    equally_long: bool,
    loss_types: list[str],
    weights: list[float],
    **settings: object,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(loss, gradient by every trained token's log-probability) of ours and theirs."""
    policy_ST, reference_ST, trained_ST = draw(seed, equally_long)
    policy_ST.requires_grad_()
    ours = build_objective(config)(
        pair_logps(policy_ST, trained_ST), pair_logps(reference_ST, trained_ST)
    ).losses_B.mean()
    theirs = trl_loss(
        policy_ST, reference_ST, trained_ST, config.rewarding.beta, loss_types, weights, **settings
    )
    return tuple((loss, torch.autograd.grad(loss, policy_ST)[0][trained_ST > 0]) for loss in (ours, theirs))


def test_every_objective_is_compared():
    """simpo has a trainer of its own, below; TRL has no dpop."""
    assert {config.name for config, _, _ in CASES} == set(LOSSES) - {"simpo", "dpop"}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("config", "loss_type", "settings"),
    CASES,
    ids=lambda value: (
        "-".join(f"{name}={setting}" for name, setting in value.model_dump(exclude_defaults=True).items())
        if isinstance(value, LossConfig)
        else ""
    ),
)
def test_loss_and_gradient_are_trls(config, loss_type, settings, seed):
    (ours, slope), (theirs, their_slope) = both(config, seed, False, [loss_type], [1.0], **settings)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slope, their_slope, rtol=1e-4, atol=1e-7)
    assert slope.abs().max() > 1e-5  # not a kink's or a cap's nothing


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("settings", [{}, {"gamma_beta_ratio": 0.0}, {"label_smoothing": 0.1}], ids=str)
def test_simpo_and_its_gradient_are_trls(settings, seed):
    config = LossConfig(name="simpo", beta=2.0, **settings)
    logps_ST, _, trained_ST = draw(seed)
    logits_STV = torch.stack(
        [logps_ST, torch.zeros_like(logps_ST)], dim=-1
    ).requires_grad_()  # a vocabulary of two words
    ours_ST = logits_STV.log_softmax(dim=-1)[..., 0] * trained_ST
    ours = build_objective(config)(pair_logps(ours_ST, trained_ST), None).losses_B.mean()
    theirs = trl_simpo_loss(logits_STV, trained_ST, config)
    slope, their_slope = (torch.autograd.grad(loss, logits_STV)[0] for loss in (ours, theirs))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slope, their_slope, rtol=1e-4, atol=1e-7)
    assert slope.abs().max() > 1e-5


def sum_of(*terms: tuple[str, float], beta: float = 0.1, **settings: object) -> LossSum:
    """Terms by name and weight with one beta, as TRL's all have; sft has none."""
    return LossSum(
        terms=tuple(
            LossTerm(name=name, weight=weight, **({} if name == "sft" else {"beta": beta} | settings))
            for name, weight in terms
        )
    )


SUMS = {
    "mpo": (
        sum_of(("dpo", 0.8), ("bco_pair", 0.2), ("sft", 1.0)),
        ["sigmoid", "bco_pair", "sft"],
        [0.8, 0.2, 1.0],
    ),
    "dpo and sft": (sum_of(("dpo", 0.8), ("sft", 0.2)), ["sigmoid", "sft"], [0.8, 0.2]),
    "sft first": (sum_of(("sft", 0.5), ("dpo_norm", 2.0)), ["sft", "sigmoid_norm"], [0.5, 2.0]),
    "sorted, too": (
        sum_of(("aot", 0.5), ("ipo", 0.1), ("sft", 0.2)),
        ["aot_unpaired", "ipo", "sft"],
        [0.5, 0.1, 0.2],
    ),
    "one twice": (sum_of(("hinge", 0.5), ("hinge", 1.5)), ["hinge", "hinge"], [0.5, 1.5]),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SUMS)
def test_a_weighted_sum_is_trls(name, seed):
    (ours, slope), (theirs, their_slope) = both(SUMS[name][0], seed, False, *SUMS[name][1:])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slope, their_slope, rtol=1e-4, atol=1e-7)
    assert slope.abs().max() > 1e-3


def test_a_weighted_sum_of_shortened_answers_is_trls():
    """Theirs shortens what is compared and not what sft averages, as ours does for the terms that are told to."""
    ours = sum_of(("dpo", 0.8), ("sft", 0.2), ld_alpha=0.4)
    (loss, slope), (theirs, their_slope) = both(ours, 0, False, ["sigmoid", "sft"], [0.8, 0.2], ld_alpha=0.4)
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slope, their_slope, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["dpo", "ipo", "apo_zero", "nca_pair"])
def test_wpo_weights_are_trls_on_any_objective(name):
    """Its hinge cannot be weighted: the weights are multiplied in place, which the gradient of relu does not survive."""
    config = LossConfig(name=name, beta=0.1, wpo_weighting=True)
    theirs_name = {"dpo": "sigmoid"}.get(name, name)
    (ours, slope), (theirs, their_slope) = both(config, 0, False, [theirs_name], [1.0], use_weighting=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slope, their_slope, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("others", [{}, {"ld_alpha": 0.4}])
def test_the_added_likelihood_is_trls_sft_loss_where_answers_are_equally_long(others):
    """Theirs averages over the tokens of a batch, ours over its pairs: the same for chosen answers of one length."""
    config = LossConfig(name="dpo", beta=0.1, rpo_alpha=0.3, **others)
    (ours, slope), (theirs, their_slope) = both(config, 0, True, ["sigmoid", "sft"], [1.0, 0.3], **others)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slope, their_slope, rtol=1e-4, atol=1e-7)


def test_the_names_that_mislead_are_told_apart():
    """TRL's ``aot`` is not ours: were the table in the docs wrong, this would fail."""
    for ours, theirs in (("aot", "aot"), ("aot_pair", "aot_unpaired")):
        (mine, _), (other, _) = both(LossConfig(name=ours, beta=0.1), 0, False, [theirs], [1.0])
        assert abs(float(mine - other)) > 1e-3
