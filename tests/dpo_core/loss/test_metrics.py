"""Batch metrics by hand."""

import pytest
import torch

from dpo_core.contract.metric_names import source_names, split_by_source
from dpo_core.loss.losses import LossOutput
from dpo_core.loss.metrics import (
    averages,
    batch_sums,
    peak_memory_gib,
    reserved_memory_gib,
    source_averages,
    source_sums,
)
from dpo_core.loss.pair_logps import PairLogps


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values)


# Three pairs: won, lost, tied; the tie's policy finds chosen likelier per token (-1 against -2).
POLICY = PairLogps(
    column(-10, -20, -6),
    column(-12, -8, -4),
    column(5, 4, 6),
    column(4, 8, 2),
    column(0, 0, 0),
    column(0, 0, 0),
)
OUTPUT = LossOutput(column(0.5, 1.5, 0.7), column(2, -1, 0.25), column(1, 1, 0.25))


def test_averages_by_hand():
    metrics = averages(batch_sums(POLICY, OUTPUT, column(1, 1, 1)))
    assert {name: metrics[name] for name in sorted(metrics)} == pytest.approx(
        {
            "loss": 2.7 / 3,
            "train_loss": 2.7 / 3,
            "logps/chosen": -36 / 3,
            "logps/rejected": -24 / 3,
            "logps_per_token/chosen": (-2 - 5 - 1) / 3,
            "logps_per_token/rejected": (-3 - 1 - 2) / 3,
            "rewards/chosen": 1.25 / 3,
            "rewards/rejected": 2.25 / 3,
            "rewards/margins": -1 / 3,
            "rewards/margin": -1 / 3,
            "rewards/average": 3.5 / 6,
            "rewards/accuracies": 1 / 3,
            "rewards/accuracy": 1 / 3,
            "ranking/accuracies": 2 / 3,  # -2 > -3, -5 < -1, -1 > -2
            "trained_tokens_per_pair": (9 + 12 + 8) / 3,
        },
        rel=1e-6,
    )


def test_a_tie_counts_half_only_where_asked():
    sums = batch_sums(POLICY, OUTPUT, column(1, 1, 1), ties_count_half=True)
    assert averages(sums)["rewards/accuracies"] == pytest.approx(1.5 / 3)
    untrained = LossOutput(column(0.7, 0.7, 0.7), torch.zeros(3), torch.zeros(3))
    assert (
        averages(batch_sums(POLICY, untrained, column(1, 1, 1), ties_count_half=True))["rewards/accuracies"]
        == 0.5
    )
    assert averages(batch_sums(POLICY, untrained, column(1, 1, 1)))["rewards/accuracies"] == 0.0


def test_fillers_do_not_count():
    with_filler = averages(batch_sums(POLICY, OUTPUT, column(1, 1, 0)))
    outputs = [getattr(OUTPUT, name)[:2] for name in LossOutput.__slots__]
    assert with_filler == averages(batch_sums(POLICY[:2], LossOutput(*outputs), column(1, 1)))


def test_sums_of_microbatches_add_up_and_carry_no_gradient():
    losses = column(0.5, 1.5, 0.7).requires_grad_()
    output = LossOutput(losses, OUTPUT.chosen_rewards_B, OUTPUT.rejected_rewards_B)
    whole = batch_sums(POLICY, output, column(1, 1, 1))
    parts = sum(batch_sums(POLICY, output, weight) for weight in (column(1, 0, 0), column(0, 1, 1)))
    assert not whole.requires_grad
    assert whole.dtype == torch.float64
    torch.testing.assert_close(whole, parts)


def test_memory_is_measured_in_gib():
    held = torch.ones(1 << 26)  # 256 MiB, every page touched
    assert 0.25 < peak_memory_gib() < 64
    assert held.numel() * held.element_size() == 2**28


def test_what_a_card_s_allocator_reserved_is_told_where_there_is_a_card(monkeypatch):
    if not torch.cuda.is_available():
        assert reserved_memory_gib() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 3 << 29)
    assert reserved_memory_gib() == 1.5


def test_metrics_by_source_by_hand():
    """Pairs of sources 0, 2, 2; source 1 has none and is left out. Fillers count nothing, parts add up."""
    names, source = ("a", "org/b", "c"), torch.tensor([0, 2, 2])
    sums = source_sums(OUTPUT, column(1, 1, 1), source, 3)
    assert source_averages(sums, names) == {
        "by_source/a/rewards/accuracies": 1.0,
        "by_source/a/rewards/margins": 1.0,
        "by_source/c/rewards/accuracies": 0.0,
        "by_source/c/rewards/margins": -1.0,
    }
    parts = [source_sums(OUTPUT, column(*real), source, 3) for real in ((1, 0, 1), (0, 1, 0))]
    assert torch.equal(sum(parts), source_sums(OUTPUT, column(1, 1, 1), source, 3))
    assert source_averages(parts[1], names) == {
        "by_source/c/rewards/accuracies": 0.0,
        "by_source/c/rewards/margins": -2.0,
    }
    assert split_by_source("by_source/org/b/rewards/margins") == ("org/b", "rewards/margins")
    assert split_by_source("by_source/org/b/logps_per_token/chosen") == ("org/b", "logps_per_token/chosen")
    assert split_by_source("rewards/margins") is None
    assert source_names(["a", "b", "a"]) == ["a", "b", "a#2"]
