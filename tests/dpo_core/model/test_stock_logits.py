"""The plain way makes the logits that are asked for, and a comparison of layouts few enough of them."""

import numpy as np
import pytest
import torch

from dpo_core.data.pair_batch import collate
from dpo_core.model import stock_logits
from dpo_core.model.forward import PairScorer, choose_layout
from dpo_core.model.stock_logits import thinned
from tests.dpo_core.model.test_forward import FAMILIES, tiny
from tests.tiny_pairs import make_pair

VOCABULARY = FAMILIES["llama"].vocab_size


def rows_of_head(model) -> list[int]:
    """How many rows of logits its head makes, call by call; those of the fast way are no tensor."""
    seen: list[int] = []

    def counted(module, inputs, output) -> None:
        if isinstance(output, torch.Tensor):
            seen.append(output.shape[:-1].numel())

    model.lm_head.register_forward_hook(counted)
    return seen


def test_the_prompt_s_logits_are_not_made(monkeypatch):
    rng = np.random.default_rng(0)
    pairs = [make_pair(rng, *lengths) for lengths in ((40, 5, 7), (30, 4, 3))]
    model = tiny(FAMILIES["llama"])
    seen, batch = rows_of_head(model), collate(pairs, range(2), "padded")
    sums = PairScorer(model, "fp32")(batch).sums_S
    places = set((batch.predictor_N % batch.ids_RT.shape[1]).tolist())
    assert seen == [4 * len(places)]
    assert len(places) <= 7 + 4 < batch.ids_RT.shape[1]
    monkeypatch.setattr(model.__class__, "forward", all_logits(model.__class__.forward))
    assert torch.equal(PairScorer(model, "fp32")(batch).sums_S, sums)
    assert seen[-1] == batch.ids_RT.numel()


def all_logits(forward):
    """The forward of an architecture that cannot choose."""

    def without_choice(self, input_ids, attention_mask, use_cache):
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    return without_choice


def test_a_comparison_of_long_pairs_makes_few_logits_and_still_sees_a_wrong_mask(monkeypatch):
    """300 tokens a side, of which 20 are compared."""
    rng = np.random.default_rng(0)
    pairs = [make_pair(rng, 20, 280, 290) for _ in range(2)]
    monkeypatch.setattr(stock_logits, "PROBED_LOGITS", 4 * 20 * VOCABULARY)
    scorer = PairScorer(tiny(FAMILIES["llama"]), "fp32")
    seen = rows_of_head(scorer.model)
    assert choose_layout(scorer, pairs, "packed", torch.device("cpu")) == "packed"
    assert len(seen) == 2
    assert max(seen) <= 4 * 20
    monkeypatch.setattr("dpo_core.model.attention.PARTS", 1)  # no answer sees its prompt
    scorer = PairScorer(tiny(FAMILIES["llama"]), "fp32")
    assert choose_layout(scorer, pairs, "prefix_sharing", torch.device("cpu")) == "padded"


@pytest.mark.parametrize("most", [16, 20, 1000])
def test_tokens_are_taken_evenly_with_the_first_and_the_last(monkeypatch, most):
    monkeypatch.setattr(stock_logits, "PROBED_LOGITS", 4 * most * VOCABULARY)
    (pair,) = [make_pair(np.random.default_rng(0), 7, 90, 11)]
    (some,) = thinned([pair], VOCABULARY)
    for ours, whole in (
        (some.chosen_trained, pair.chosen_trained),
        (some.rejected_trained, pair.rejected_trained),
    ):
        at, every = np.flatnonzero(ours), np.flatnonzero(whole)
        assert len(at) == min(most, len(every))
        assert set(at) <= set(every)
        assert (at[0], at[-1]) == (every[0], every[-1])
        assert np.diff(at).max() <= -(-len(every) // most) + 1
    assert some.chosen_ids is pair.chosen_ids
