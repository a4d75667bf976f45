"""Processes that share each layer's matrices out compute what one does: sums and gradients, packed and by stock logits."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dpo_core.model import logprobs
from dpo_core.model.attention import PAIRWISE, set_kernel
from dpo_core.model.forward import PairScorer
from dpo_core.model.logprobs import LogitRule, VocabularyHead
from dpo_core.model.recompute import checkpoint_layers
from dpo_core.model.tensor_parallel import ATTRIBUTE, TensorShare, share_tensors
from dpo_core.model.tensor_ranks import TensorRanks
from tests.dpo_core.model.test_attention import assert_same, scores_and_gradients, some_pairs
from tests.tiny_architectures import PACKED, tiny
from tests.together import together

ODD = 301  # tokens, which two processes cannot share equally


def of_this_process(name: str, tensor: Tensor, share: TensorShare) -> Tensor:
    if name not in share.cuts:
        return tensor
    dimension = share.cuts[name].dimension
    first, last = share.ranks.part(tensor.shape[dimension])
    return tensor.narrow(dimension, first, last - first)


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen2_sliding", "qwen3", "mistral", "olmo2", "olmo3"])
def test_two_processes_give_the_sums_and_gradients_of_one(tmp_path, monkeypatch, name, is_tied):
    """Chunks of logits, layers that are computed again but for some products, padded rows with logits of all tokens."""
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", 7 * ODD)
    config = copy.deepcopy(PACKED[name])
    config.vocab_size, config.tie_word_embeddings = ODD, is_tied
    pairs = some_pairs()
    whole = tiny(config)
    with torch.no_grad():
        for weight in whole.parameters():
            if weight.dim() == 1:  # norms that are mixed up show only if they differ
                weight.normal_(mean=1.0, std=0.3)

    def numbers(model, layout):
        scorer = PairScorer(model, "fp32")
        if layout == "packed":
            set_kernel(model, PAIRWISE[model.config._attn_implementation])
            checkpoint_layers(model, budget=20_000)
        return scores_and_gradients(scorer.train(), pairs, layout)

    expected = {layout: numbers(copy.deepcopy(whole), layout) for layout in ("padded", "packed")}

    def compare(rank: int) -> None:
        for layout, (sums, gradients) in expected.items():
            model = copy.deepcopy(whole)
            values = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
            share = share_tensors(model, TensorRanks(dist.group.WORLD, rank, 2))
            for key, parameter in model.named_parameters():
                parameter.data.copy_(of_this_process(key, values[key], share))
            ours, slopes = numbers(model, layout)
            slopes = {
                key: share.ranks.sum(slope) if key in share.summed else slope for key, slope in slopes.items()
            }
            theirs = {key: of_this_process(key, slope, share) for key, slope in gradients.items()}
            assert_same((ours, slopes), (sums, theirs))
            assert all(
                parameter.dim() == 1 or key in share.cuts for key, parameter in model.named_parameters()
            )

    together(compare, tmp_path)


@pytest.mark.parametrize("rule", [LogitRule(), LogitRule(factor=0.5, cap=3.0)], ids=["plain", "capped"])
def test_a_head_whose_vocabulary_is_shared_out_by_three_gives_log_probabilities_squares_and_slopes(
    tmp_path, monkeypatch, rule
):
    """Seven tokens a chunk; biases; a probability near 1, whose slope has no bits beside the sum."""
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", 7 * ODD)
    torch.manual_seed(0)
    head = nn.Linear(16, ODD)
    hidden, targets = torch.randn(20, 16), torch.randint(ODD, (20,))
    with torch.no_grad():
        hidden[0] = 9 * head.weight[targets[0]]
    slopes = torch.randn(20)

    def scored(head: nn.Linear) -> tuple[Tensor, ...]:
        own = hidden.clone().requires_grad_()
        scores = VocabularyHead(head, rule).token_scores(own, targets, squares=True)
        scores.logps_N.backward(slopes)
        return scores.logps_N.detach(), scores.squares_N, own.grad, head.weight.grad, head.bias.grad

    expected = scored(head)

    def compare(rank: int) -> None:
        ranks = TensorRanks(dist.group.WORLD, rank, 3)
        first, last = ranks.part(ODD)
        part = nn.Linear(16, ODD)
        part.weight, part.bias = (nn.Parameter(of[first:last].detach().clone()) for of in head.parameters())
        setattr(part, ATTRIBUTE, TensorShare(ranks, {}, frozenset()))
        found = scored(part)
        for ours, theirs in zip(
            found, (*expected[:3], *(of[first:last] for of in expected[3:])), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)

    together(compare, tmp_path, size=3)
