"""Prefix sharing against its slow twin, and both against stock logits computed by hand."""

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from dpo_core.data.pair_batch import collate
from dpo_core.data.pair_file import common_prefix_length
from dpo_core.data.pairs import TokenizedPair
from dpo_core.model import forward, logprobs
from dpo_core.model.forward import PairScorer, pair_logps
from tests.tiny_architectures import SIZES
from tests.tiny_pairs import make_pair

FAMILIES = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "olmo2": Olmo2Config(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "gemma2": Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=3.0),
}


def tiny(config) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def some_pairs(num: int = 5, seed: int = 0, **kwargs) -> list[TokenizedPair]:
    rng = np.random.default_rng(seed)
    return [make_pair(rng, *rng.integers(2, 30, 3), **kwargs) for _ in range(num)]


def by_hand(model: PreTrainedModel, ids: np.ndarray, trained: np.ndarray, skip: int = 0) -> float:
    """Sum of log softmax(logits[t - 1])[ids[t]] over trained t but the first ``skip``: one sequence, no batch, float64."""
    with torch.no_grad():
        logps = model(torch.tensor(ids)[None].long()).logits[0].double().log_softmax(-1)
    places = [t for t in range(1, len(ids)) if trained[t]]
    return float(sum(logps[t - 1, int(ids[t])] for t in places[skip:]))


@pytest.mark.parametrize("family", FAMILIES)
def test_both_layouts_give_the_sums_computed_by_hand(family):
    model, pairs = tiny(FAMILIES[family]), some_pairs()
    sides = [((p.chosen_ids, p.chosen_trained), (p.rejected_ids, p.rejected_trained)) for p in pairs]
    expected = [by_hand(model, *side) for both in sides for side in both]
    tails = [
        by_hand(model, *side, skip=min(trained.sum() for _, trained in both))
        for both in sides
        for side in both
    ]
    for layout in ("padded", "prefix_sharing", "packed"):
        batch = collate(pairs, range(5), layout)
        with torch.no_grad():
            scores = PairScorer(model, "fp32")(batch)
        for got, wanted in ((scores.sums_S, expected), (scores.tails_S, tails)):
            torch.testing.assert_close(
                got.double(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=1e-4
            )


@pytest.mark.parametrize("layout", ["padded", "prefix_sharing", "packed"])
@pytest.mark.parametrize("stock_logits", [True, False])
def test_squares_are_those_computed_by_hand_in_every_layout(monkeypatch, layout, stock_logits):
    """log sum_v p(v)^2 at each trained token, one sequence at a time in float64; the fast way in chunks of 7 tokens."""
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", 7 * 300)
    model, pairs = tiny(FAMILIES["llama"]), some_pairs()
    expected = []
    for p in pairs:
        for ids, trained in ((p.chosen_ids, p.chosen_trained), (p.rejected_ids, p.rejected_trained)):
            with torch.no_grad():
                probabilities = model(torch.tensor(ids)[None].long()).logits[0].double().softmax(-1)
            squares = probabilities.square().sum(-1).log()
            expected.append(sum(float(squares[t - 1]) for t in range(1, len(ids)) if trained[t]))
    scorer = PairScorer(model, "fp32")
    scorer.with_squares, scorer.stock_logits = True, stock_logits
    batch = collate(pairs, range(5), layout)
    scores = scorer(batch)
    torch.testing.assert_close(scores.squares_S, torch.tensor(expected), rtol=1e-5, atol=1e-4)
    policy = pair_logps(scores, batch.tokens_2B)
    assert policy.rejected_squares_B.tolist() == scores.squares_S[1::2].tolist()
    scorer.with_squares = False
    assert pair_logps(scorer(batch), batch.tokens_2B).chosen_squares_B is None


def test_training_on_earlier_turns_counts_the_shared_tokens_on_both_sides():
    model, pairs = tiny(FAMILIES["llama"]), some_pairs(train_prompt_turn=True)
    padded, shared = (collate(pairs, range(5), layout) for layout in ("padded", "prefix_sharing"))
    torch.testing.assert_close(shared.tokens_2B, padded.tokens_2B)
    scorer = PairScorer(model, "fp32")
    torch.testing.assert_close(tuple(scorer(shared)), tuple(scorer(padded)), rtol=1e-5, atol=1e-4)


def test_gradients_agree_between_layouts():
    gradients = []
    for layout in ("padded", "prefix_sharing"):
        model = tiny(FAMILIES["llama"])
        logps = pair_logps(PairScorer(model, "fp32")(collate(some_pairs(), range(5), layout)), torch.ones(10))
        (logps.chosen_B - 0.5 * logps.rejected_B).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


def test_an_answer_that_is_the_beginning_of_the_other_leaves_nothing_to_hide():
    ids = np.arange(1, 13, dtype=np.int32)
    pair = TokenizedPair("k", ids[:8], np.arange(8) >= 4, ids, np.arange(12) >= 4)
    assert common_prefix_length(pair.chosen_ids, pair.rejected_ids) == 8
    scorer = PairScorer(tiny(FAMILIES["llama"]), "fp32")
    sums = [scorer(collate([pair], [0], layout)) for layout in ("padded", "prefix_sharing")]
    torch.testing.assert_close(tuple(sums[0]), tuple(sums[1]), rtol=1e-5, atol=1e-5)


def test_chunked_projection_equals_one_piece(monkeypatch):
    model, batch = tiny(FAMILIES["llama"]), collate(some_pairs(), range(5), "prefix_sharing")
    whole = PairScorer(model, "fp32")(batch)
    whole.sums_S.sum().backward()
    expected = model.lm_head.weight.grad.clone()
    model.zero_grad()
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", 7 * 300)
    chunked = PairScorer(model, "fp32")(batch)
    chunked.sums_S.sum().backward()
    torch.testing.assert_close(chunked.sums_S, whole.sums_S, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(model.lm_head.weight.grad, expected, rtol=1e-4, atol=1e-5)


class Casts(TorchDispatchMode):
    """Remembers every bf16 tensor of a weight's shape that is made while this is on."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.shapes = {parameter.shape for parameter in model.parameters() if parameter.dim() == 2}
        self.made: list[StorageWeakRef] = []

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        made = operation(*arguments, **(keywords or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.bfloat16 and made.shape in self.shapes:
            self.made.append(StorageWeakRef(made.untyped_storage()))
        return made

    @property
    def alive(self) -> int:
        return sum(not storage.expired() for storage in self.made)


def test_no_weight_has_a_copy_in_bf16_at_the_end_of_a_forward():
    """Neither where activations are recomputed nor in a pass without gradients: the whole model, be it sharded or
    not."""
    model, batch = tiny(FAMILIES["llama"]), collate(some_pairs(), range(5), "prefix_sharing")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    scorer = PairScorer(model.train(), "bf16")
    for with_gradient in (True, False):
        with torch.set_grad_enabled(with_gradient), Casts(model) as casts:
            scores = scorer(batch)
            assert len(casts.made) >= 14
            assert casts.alive == 0
    del scores


def test_on_a_card_the_layout_is_not_left_for_an_error_after_which_nothing_works(monkeypatch):
    def broken(*_: object) -> float:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(forward, "largest_difference", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        forward.choose_layout(
            PairScorer(tiny(FAMILIES["llama"]), "fp32"), some_pairs(), "packed", torch.device("cpu")
        )
