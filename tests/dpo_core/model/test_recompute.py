"""Checkpointing with a budget: the bits of full checkpointing, fewer products, and never more memory than was said."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dpo_core.contract.errors import ConfigError
from dpo_core.data.pair_batch import collate
from dpo_core.model import recompute
from dpo_core.model.attention import PAIRWISE, set_kernel
from dpo_core.model.forward import PairScorer
from dpo_core.model.recompute import KeptProducts, checkpoint_layers
from tests.tiny_architectures import PACKED, tiny
from tests.tiny_pairs import make_pair


class Products(TorchDispatchMode):
    """Counts products of matrices."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._schema.name in ("aten::mm", "aten::addmm", "aten::bmm")
        return func(*args, **(kwargs or {}))


def gradients(budget: int | None) -> tuple[dict[str, torch.Tensor], int, KeptProducts | None]:
    """Of two forwards, each with its backward; products of the second backward."""
    scorer = PairScorer(tiny(PACKED["llama"]), "fp32")
    scorer.stock_logits = False
    set_kernel(scorer.model, PAIRWISE["sdpa"])
    kept = None if budget is None else checkpoint_layers(scorer.model, budget)
    scorer.train()
    for first in (3, 4):
        scorer.zero_grad()
        rng = np.random.default_rng(first)
        pairs = [make_pair(rng, *rng.integers(2, 30, 3)) for _ in range(2)]
        loss = scorer(collate(pairs, range(2), "packed")).sums_S.sum()
        with Products() as products:
            loss.backward()
    return {name: p.grad.clone() for name, p in scorer.named_parameters()}, products.count, kept


def test_a_budget_changes_no_bit_and_spares_products():
    plain, fewest, _ = gradients(None)
    full, most, _ = gradients(0)
    everything, as_few, kept = gradients(1 << 40)
    some, between, half = gradients(kept.used // 2)
    for name, gradient in full.items():
        assert torch.equal(everything[name], gradient), name
        assert torch.equal(some[name], gradient), name
        torch.testing.assert_close(plain[name], gradient)
    assert as_few == fewest < between < most
    assert 0.4 * kept.used < half.used <= half.budget == kept.used // 2


@pytest.mark.parametrize("budget", [0, 1 << 40])
def test_forwards_without_a_backward_keep_nothing(budget):
    scorer = PairScorer(tiny(PACKED["llama"]), "fp32")
    kept = checkpoint_layers(scorer.model, budget)
    scorer.train()
    with torch.no_grad():
        scorer(collate([make_pair(np.random.default_rng(0), 3, 4, 5)], [0], "padded"))
    assert kept.used == 0


def test_an_older_torch_that_tells_no_outputs_ends_in_a_sentence(monkeypatch):
    class Older:
        def __init__(self, *, is_recompute):
            self.is_recompute = is_recompute

    monkeypatch.setattr(recompute, "SelectiveCheckpointContext", Older)
    model = tiny(PACKED["llama"])
    with pytest.raises(ConfigError, match=r"needs torch 2\.13 or later"):
        checkpoint_layers(model, 1)
    checkpoint_layers(model, 0)
