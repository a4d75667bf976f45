"""One call for all pairs of a packed row against attention under the dense mask. The kernel is of cards alone: its twin."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dpo_core.data.pair_batch import collate
from dpo_core.model import attention, varlen
from dpo_core.model.attention import PAIRWISE, set_kernel
from dpo_core.model.forward import PairScorer
from dpo_core.model.varlen import Places
from tests.tiny_architectures import PACKED, tiny
from tests.tiny_pairs import make_pair

HEADS, KEY_HEADS, SIZE = 4, 2, 8
SPANS = {
    "ordinary": [(5, 3, 4), (2, 6, 1), (7, 1, 9)],
    "one": [(4, 3, 2)],
    "nothing rejected": [(5, 3, 0), (2, 2, 3)],
    "nothing shared": [(0, 4, 5), (3, 2, 2)],
    "all shared": [(6, 0, 4), (3, 0, 0)],
    "alone": [(3, 2, 0)],
}


def twin(
    query_THD: Tensor,
    key_KHD: Tensor,
    value_KHD: Tensor,
    places: Places,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """Sequence by sequence as flash attention's definition has it: causality is aligned at the end."""
    outputs = []
    ends = list(zip(places.ends_q_S1.tolist(), places.ends_k_S1.tolist(), strict=True))
    for (q, k), (q_end, k_end) in pairwise(ends):
        assert q_end - q <= places.longest_q
        assert k_end - k <= places.longest_k
        behind = torch.arange(k_end - k - (q_end - q), k_end - k)[:, None] - torch.arange(k_end - k)
        mask = (behind >= 0) if window is None else (behind >= 0) & (behind < window)
        states = (
            states.transpose(0, 1)[None]
            for states in (query_THD[q:q_end], key_KHD[k:k_end], value_KHD[k:k_end])
        )
        output = scaled_dot_product_attention(*states, attn_mask=mask, scale=scale, enable_gqa=True)
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


def dense(states: tuple[Tensor, ...], spans: list[tuple[int, int, int]], window: int | None) -> Tensor:
    """All keys, and a mask made token by token: own part or the pair's prefix, not later, within the window by positions."""
    tokens = [
        (pair, part, position)
        for pair, (prefix, chosen, rejected) in enumerate(spans)
        for part, first, count in ((0, 0, prefix), (1, prefix, chosen), (2, prefix, rejected))
        for position in range(first, first + count)
    ]
    mask = torch.tensor(
        [
            [q[0] == k[0] and k[1] in (0, q[1]) and 0 <= q[2] - k[2] < (window or 999) for k in tokens]
            for q in tokens
        ]
    )
    return scaled_dot_product_attention(*states, attn_mask=mask, scale=0.3, enable_gqa=True).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("name", SPANS)
def test_a_row_as_sequences_is_the_row_under_its_mask(name, window):
    spans, generator = SPANS[name], torch.Generator().manual_seed(0)
    length = sum(map(sum, spans))
    states = tuple(
        torch.randn(1, heads, length, SIZE, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    ours = varlen.attend(states, Places.of(spans, torch.device("cpu")), 0.3, window, twin)
    theirs = dense(states, spans, window)
    torch.testing.assert_close(ours, theirs)
    slope = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(ours, states, slope), torch.autograd.grad(theirs, states, slope)
    )


def test_a_prefix_is_laid_out_twice_and_nothing_else():
    places = Places.of([(2, 1, 2), (1, 2, 0)], torch.device("cpu"))
    assert places.key_K.tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 6, 7]
    assert places.ends_q_S1.tolist() == [0, 3, 5, 8]
    assert places.ends_k_S1.tolist() == [0, 3, 7, 10]
    assert (places.longest_q, places.longest_k) == (3, 4)


@pytest.mark.parametrize(
    ("dtype", "reason"), [(torch.bfloat16, "needs a CUDA card"), (torch.float32, "needs a CUDA card")]
)
def test_without_a_card_it_says_why_not(dtype, reason):
    assert reason in varlen.why_not_varlen(torch.empty(1, HEADS, 3, SIZE), dtype)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_model_takes_one_call_a_layer_and_its_numbers_stay(name, monkeypatch):
    """As on a card, but for the kernel; Mistral's layers have a window."""
    rng, calls = np.random.default_rng(0), []
    batch = collate([make_pair(rng, *rng.integers(2, 30, 3)) for _ in range(3)], range(3), "packed")
    scorer = PairScorer(tiny(PACKED[name]), "fp32")
    scorer.stock_logits = False
    set_kernel(scorer.model, PAIRWISE["sdpa"])
    pair_by_pair = scorer(batch).sums_S

    def counted(*arguments) -> Tensor:
        calls.append(arguments[-1])
        return twin(*arguments)

    monkeypatch.setattr(attention, "why_not_varlen", lambda query, dtype: None)
    monkeypatch.setattr(varlen, "flash", counted)
    torch.testing.assert_close(scorer(batch).sums_S, pair_by_pair, rtol=1e-5, atol=0)
    assert calls == [PACKED[name].sliding_window if name == "mistral" else None] * 2
