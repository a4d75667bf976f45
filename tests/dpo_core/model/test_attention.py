"""Every architecture: sharing and packing give the padded forward's numbers and gradients, or fall back and say why."""

import functools
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import MistralConfig, PreTrainedConfig, PreTrainedModel

from dpo_core.data.pair_batch import collate
from dpo_core.data.pairs import TokenizedPair
from dpo_core.model.attention import PAIRWISE, block_mask, dense_mask, layer_reach, set_kernel
from dpo_core.model.forward import PairScorer, choose_layout
from dpo_core.model.pair_spans import PairSpans
from tests.tiny_architectures import ONE_PAIR_A_ROW, PACKED, PADDED_ONLY, SIZES, WINDOW, tiny
from tests.tiny_pairs import make_pair

CPU = torch.device("cpu")
SHARED = {**PACKED, **{name: config for name, (config, _) in ONE_PAIR_A_ROW.items()}}


def some_pairs(num: int = 5, seed: int = 0) -> list[TokenizedPair]:
    """Pairs of many lengths; every other one also trains a part of its prompt."""
    rng = np.random.default_rng(seed)
    return [make_pair(rng, *rng.integers(2, 30, 3), train_prompt_turn=bool(i % 2)) for i in range(num)]


Numbers = tuple[Tensor, dict[str, Tensor]]  # sums of the sequences, gradients by parameter


def scorer_of(config: PreTrainedConfig, kernel: str | None = None) -> PairScorer:
    return PairScorer(tiny(config, kernel=kernel), "fp32")


def gradients_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def scores_and_gradients(scorer: PairScorer, pairs: list[TokenizedPair], layout: str) -> Numbers:
    """With gradients of a loss that tells chosen from rejected."""
    scorer.zero_grad()
    sums = scorer(collate(pairs, range(len(pairs)), layout)).sums_S
    (sums[0::2] - 0.5 * sums[1::2]).sum().backward()
    return sums.detach(), gradients_of(scorer.model)


def assert_same(ours: Numbers, theirs: Numbers, gradient_noise: float = 1e-5) -> None:
    """Within 1e-5 relative; a gradient relative to the largest of its parameter, 1e-3 of the largest of all at least."""
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=0)
    assert ours[1].keys() == theirs[1].keys()
    floor = 1e-3 * max(float(gradient.abs().max()) for gradient in theirs[1].values())
    for name, gradient in theirs[1].items():
        allowed = gradient_noise * max(float(gradient.abs().max()), floor)
        assert float((ours[1][name] - gradient).abs().max()) <= allowed, name


def packing(scorer: PairScorer) -> PairScorer:
    """With the kernel that ``choose_layout`` would give it."""
    set_kernel(scorer.model, PAIRWISE[scorer.model.config._attn_implementation])
    return scorer


@pytest.mark.parametrize("name", PACKED)
def test_packing_gives_the_padded_numbers_and_gradients(name):
    pairs = some_pairs()
    padded = scores_and_gradients(scorer_of(PACKED[name]), pairs, "padded")
    assert_same(scores_and_gradients(packing(scorer_of(PACKED[name])), pairs, "packed"), padded)


@pytest.mark.parametrize("name", SHARED)
def test_prefix_sharing_gives_the_padded_numbers_and_gradients(name):
    pairs = some_pairs()
    padded = scores_and_gradients(scorer_of(SHARED[name]), pairs, "padded")
    assert_same(scores_and_gradients(scorer_of(SHARED[name]), pairs, "prefix_sharing"), padded)


@functools.cache
def stock_and_packing(name: str) -> tuple[PairScorer, PairScorer]:
    return scorer_of(PACKED[name]), packing(scorer_of(PACKED[name]))


@given(
    lengths=st.lists(
        st.tuples(*[st.integers(0, 8)] * 3).filter(lambda pair: pair[0] or min(pair[1:])),
        min_size=1,
        max_size=4,
    ),
    name=st.sampled_from(["llama", "mistral"]),
    seed=st.integers(0, 9),
)
@settings(max_examples=30, deadline=None)
def test_pairs_of_any_shape_fit(lengths, name, seed):
    """No common token, an answer that is empty, one that begins the other, two that are equal, a single token."""
    rng = np.random.default_rng(seed)
    pairs = [
        make_pair(rng, *pair, vocab=3, train_prompt_turn=True) for pair in lengths
    ]  # 3 words: prefixes grow by chance
    stock, packs = stock_and_packing(name)
    with torch.no_grad():
        padded = tuple(stock(collate(pairs, range(len(pairs)), "padded")))
        for scorer, layout in ((packs, "packed"), (stock, "prefix_sharing")):
            ours = tuple(scorer(collate(pairs, range(len(pairs)), layout)))
            torch.testing.assert_close(ours, padded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
def test_eager_attention_pair_by_pair_agrees(name):
    pairs = some_pairs()
    padded = scores_and_gradients(scorer_of(PACKED[name]), pairs, "padded")
    scorer = packing(scorer_of(PACKED[name], "eager"))
    assert scorer.model.config._attn_implementation == "eager_pairwise"
    assert_same(scores_and_gradients(scorer, pairs, "packed"), padded)


@pytest.mark.parametrize("layout", ["packed", "prefix_sharing"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
def test_the_dense_mask_of_eager_attention_agrees(name, layout):
    """Of all kernels the plainest: scores of every token with every token, then the mask."""
    pairs = some_pairs()
    padded = scores_and_gradients(scorer_of(PACKED[name]), pairs, "padded")
    assert_same(scores_and_gradients(scorer_of(PACKED[name], kernel="eager"), pairs, layout), padded)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_packing_agrees_when_activations_are_recomputed(name):
    """The backward runs attention again, long after the forward that knew where the pairs lie."""
    pairs, scorer = some_pairs(), packing(scorer_of(PACKED[name])).train()
    scorer.model.gradient_checkpointing_enable({"use_reentrant": False})
    padded = scores_and_gradients(scorer_of(PACKED[name]), pairs, "padded")
    assert_same(scores_and_gradients(scorer, pairs, "packed"), padded)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, config in SHARED.items()
        if "full_attention" not in layer_reach(config) or len(layer_reach(config)) > 1
    ],
)
def test_the_windows_of_these_models_are_narrower_than_their_rows(name):
    """Else the tests above would not meet a window: another window, other numbers."""
    config, pairs = SHARED[name], some_pairs()
    wider = type(config).from_dict({**config.to_dict(), "sliding_window": 250, "attention_chunk_size": 250})
    numbers = [scores_and_gradients(scorer_of(c), pairs, "padded")[0] for c in (config, wider)]
    assert (numbers[0] - numbers[1]).abs().max() > 0.1


def test_a_window_counts_positions_and_no_part_sees_the_other():
    """Prompt 1 2 3, chosen 4 5, rejected 6 7, a window of 3 positions; then a pair of one token each side, packed."""

    def pair(prompt: list[int], chosen: list[int], rejected: list[int]) -> TokenizedPair:
        sides = (np.array(prompt + answer, dtype=np.int32) for answer in (chosen, rejected))
        return TokenizedPair(
            "k", *(array for ids in sides for array in (ids, np.arange(len(ids)) >= len(prompt)))
        )

    batch = collate([pair([1, 2, 3], [4, 5], [6, 7]), pair([8], [9], [10])], [0, 1], "packed")
    assert batch.ids_RT.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]
    assert batch.position_ids_RT.tolist() == [[0, 1, 2, 3, 4, 3, 4, 0, 1, 1]]
    sees = {
        1: [1],
        2: [1, 2],
        3: [1, 2, 3],
        4: [2, 3, 4],
        5: [3, 4, 5],
        6: [2, 3, 6],
        7: [3, 6, 7],
        8: [8],
        9: [8, 9],
        10: [8, 10],
    }
    (reach,) = layer_reach(MistralConfig(**SIZES, sliding_window=3)).values()
    visible = dense_mask(batch, reach)[0, 0]
    assert {token: [key for key in range(1, 11) if visible[token - 1, key - 1]] for token in sees} == sees
    unlimited = dense_mask(batch, None)[0, 0]
    assert [key for key in range(1, 11) if unlimited[6, key - 1]] == [1, 2, 3, 6, 7]
    spans = PairSpans.of(batch)
    assert spans.lengths == [(3, 2, 2), (1, 1, 1)]
    assert spans.mask(2, 5, 3, additive=False)[0, 0].int().tolist() == [[0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert spans.mask(2, 3, 3, additive=False)[0, 0].int().tolist() == [[1, 1, 0], [1, 1, 1]]
    assert spans.mask(5, 5, None, additive=False) is None
    assert spans.mask(5, 5, 5, additive=False) is None
    assert spans.mask(5, 5, 3, additive=False) is not None


@pytest.mark.parametrize("layout", ["packed", "prefix_sharing"])
def test_the_block_mask_of_flex_attention_is_the_dense_mask(layout):
    batch = collate(some_pairs(), range(5), layout)
    for reach in (None, *layer_reach(MistralConfig(**SIZES, sliding_window=WINDOW)).values()):
        rows, width = batch.ids_RT.shape
        mask, expected = block_mask(batch, reach), dense_mask(batch, reach)[:, 0]
        row, query, key = torch.meshgrid(
            torch.arange(rows), torch.arange(width), torch.arange(width), indexing="ij"
        )
        assert torch.equal(mask.mask_mod(row, torch.zeros_like(row), query, key), expected)
        blocks = mask.to_dense()[:, 0].bool()
        for block_row, block_query, block_key in np.ndindex(*blocks.shape):
            tile = expected[
                block_row,
                block_query * 128 : (block_query + 1) * 128,
                block_key * 128 : (block_key + 1) * 128,
            ]
            assert bool(blocks[block_row, block_query, block_key]) == bool(tile.any())


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gemma3_that_sees", "gpt_neox", "mixtral"])
def test_what_fits_is_packed(name, caplog):
    caplog.set_level(logging.INFO)
    assert choose_layout(scorer_of(PACKED[name]), some_pairs(), "packed", CPU) == "packed"
    assert "the packed forward agrees with the plain one" in caplog.text


@pytest.mark.parametrize("name", ONE_PAIR_A_ROW)
def test_attention_that_cannot_be_called_pair_by_pair_falls_back_to_one_pair_a_row(name, caplog):
    config, reason = ONE_PAIR_A_ROW[name]
    scorer, pairs = scorer_of(config), some_pairs()
    padded = scores_and_gradients(scorer_of(config), pairs, "padded")
    assert choose_layout(scorer, pairs, "packed", CPU) == "prefix_sharing"
    assert reason in caplog.text
    assert "using the prefix_sharing forward" in caplog.text
    assert_same(scores_and_gradients(scorer, pairs, "prefix_sharing"), padded)


def one_by_one(model: PreTrainedModel, pairs: list[TokenizedPair]) -> Numbers:
    """What ``scores_and_gradients`` gives, by stock calls on one sequence at a time: no batch, no mask, no padding."""
    model.zero_grad()
    sums = []
    for side, (ids, trained) in enumerate(
        side
        for p in pairs
        for side in ((p.chosen_ids, p.chosen_trained), (p.rejected_ids, p.rejected_trained))
    ):
        logps_TV = (
            model(torch.from_numpy(ids)[None].long(), use_cache=False).logits[0].float().log_softmax(-1)
        )
        at = torch.tensor([t for t in range(1, len(ids)) if trained[t]])
        total = logps_TV[at - 1, torch.from_numpy(ids).long()[at]].sum()
        (total if side % 2 == 0 else -0.5 * total).backward()
        sums.append(total.detach())
    return torch.stack(sums), gradients_of(model)


@pytest.mark.parametrize("name", PADDED_ONLY)
def test_what_fits_no_mask_falls_back_to_padded_and_trains_right(name, caplog):
    config, reason = PADDED_ONLY[name]
    scorer, pairs = scorer_of(config), some_pairs()
    assert choose_layout(scorer, pairs, "packed", CPU) == "padded"
    assert reason in caplog.text
    assert "using the padded forward" in caplog.text
    assert (
        not scorer.stock_logits
    )  # the vocabulary projection of answer tokens only, as in the shared layouts
    # 1e-4: linear attention sums in chunks, whose number depends on the batch's width.
    assert_same(
        scores_and_gradients(scorer, pairs, "padded"), one_by_one(tiny(config), pairs), gradient_noise=1e-4
    )


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "olmoe"])
def test_the_padded_twin_is_what_single_sequences_give(name):
    pairs = some_pairs()
    assert_same(
        scores_and_gradients(scorer_of(PACKED[name]), pairs, "padded"), one_by_one(tiny(PACKED[name]), pairs)
    )


def test_a_layout_that_gives_other_numbers_is_found_and_left(caplog, monkeypatch):
    """Masks that count places instead of positions: exact for full attention, wrong for windows."""
    monkeypatch.setattr("dpo_core.model.attention.layer_reach", lambda config: {"full_attention": None})
    scorer = scorer_of(PACKED["olmo3"])
    assert choose_layout(scorer, some_pairs(), "prefix_sharing", CPU) == "padded"
    assert "differs from the plain one by" in caplog.text
    assert "nats a token (allowed 1e-04) on Olmo3ForCausalLM; using the padded forward" in caplog.text


def test_a_head_that_is_not_understood_keeps_the_stock_logits(caplog, monkeypatch):
    """As if the architecture scaled its logits in a way of its own."""
    monkeypatch.setattr(
        "dpo_core.model.forward.vocabulary_head",
        lambda model: lambda hidden_NH: 2 * model.get_output_embeddings()(hidden_NH),
    )
    scorer, pairs = scorer_of(PACKED["llama"]), some_pairs()
    assert choose_layout(scorer, pairs, "packed", CPU) == "padded"
    assert scorer.stock_logits
    assert "using the plain forward" in caplog.text
    assert_same(scores_and_gradients(scorer, pairs, "padded"), one_by_one(tiny(PACKED["llama"]), pairs))


@pytest.mark.parametrize("kernel", PAIRWISE)
def test_generation_after_packing_is_stock_attention(kernel):
    model = tiny(PACKED["mistral"], kernel=kernel)
    prompt = torch.arange(1, 20)[None]
    expected = model.generate(prompt, max_new_tokens=8, do_sample=False)
    set_kernel(model, PAIRWISE[kernel])
    assert torch.equal(model.generate(prompt, max_new_tokens=8, do_sample=False), expected)


@pytest.mark.integration
def test_flex_attention_with_its_block_mask_agrees(monkeypatch):
    """Compiles kernels (half a minute each). Forward only: flex_attention has no backward on the CPU."""
    # For sizes that may vary torch 2.13 writes C++ that does not compile on the CPU; so one kernel for each size.
    monkeypatch.setattr(torch._dynamo.config, "automatic_dynamic_shapes", False)
    pairs = some_pairs()
    for name, layout in (("llama", "packed"), ("gemma3", "packed"), ("gemma3", "prefix_sharing")):
        with torch.no_grad():
            padded = scorer_of(PACKED[name])(collate(pairs, range(5), "padded")).sums_S
            scorer = scorer_of(PACKED[name], "flex_attention")
            torch.testing.assert_close(
                scorer(collate(pairs, range(5), layout)).sums_S, padded, rtol=1e-5, atol=0
            )


def test_a_mask_that_is_wrong_shows_in_bf16_as_it_does_in_fp32(monkeypatch):
    """A window that is lost moves a sequence's mean by less than the noise of bf16."""
    seen = PairSpans.mask
    scorer = PairScorer(tiny(PACKED["mistral"]), "bf16")
    assert choose_layout(scorer, some_pairs(), "packed", CPU) == "packed"
    assert scorer.precision == "bf16"
    monkeypatch.setattr(
        PairSpans,
        "mask",
        lambda self, queries, keys, window, additive: seen(self, queries, keys, None, additive),
    )
    assert (
        choose_layout(PairScorer(tiny(PACKED["mistral"]), "bf16"), some_pairs(), "packed", CPU)
        == "prefix_sharing"
    )
