"""Why a model is compiled and recomputed by calls of ours and not by OLMo-core's own of these names (docs/olmo-core.md)."""

import numpy as np
import pytest
import torch
from olmo_core.nn.transformer.config import TransformerActivationCheckpointingMode
from torch import nn

from dpo_core.data.pair_batch import collate
from dpo_core.model import attention, varlen
from dpo_core.model.attention import PAIRWISE, set_kernel
from dpo_core.model.forward import PairScorer
from dpo_core.model.load import load_on_olmo_core
from dpo_core.model.recompute import checkpoint_layers
from dpo_core.model.regions import compile_regions
from tests.dpo_core.model.test_attention import scores_and_gradients, some_pairs
from tests.dpo_core.model.test_regions import Graphs
from tests.olmo_core.test_models import MODELS, saved
from tests.tiny_pairs import make_pair

ROWS = 6


@pytest.fixture
def scorer(tmp_path) -> PairScorer:
    """A model of OLMo-core's with our masks, in training."""
    torch._dynamo.reset()
    made = PairScorer(load_on_olmo_core(saved(MODELS["qwen3"], tmp_path)), "fp32")
    made.stock_logits = False
    set_kernel(made.model, PAIRWISE["sdpa"])
    return made.train()


def graphs_after_each_row(scorer: PairScorer, graphs: Graphs) -> list[int]:
    """How many graphs were compiled when the first, the second, ... packed row of two pairs was computed."""
    counted = []
    for seed in range(ROWS):
        rng = np.random.default_rng(seed)
        batch = collate([make_pair(rng, *rng.integers(3, 30, 3)) for _ in range(2)], range(2), "packed")
        scorer.zero_grad()
        scorer(batch).sums_S.sum().backward()
        counted.append(graphs.count)
    return counted


@torch.library.custom_op("pairline_tests::attends", mutates_args=())
def attends(query: torch.Tensor, ends_q: torch.Tensor, ends_k: torch.Tensor, longest: int) -> torch.Tensor:
    """An operator that is not looked into, as a card's variable-length flash attention is; which numbers, is all one."""
    return query * 1.0


@attends.register_fake
def _(query: torch.Tensor, ends_q: torch.Tensor, ends_k: torch.Tensor, longest: int) -> torch.Tensor:
    return torch.empty_like(query)


attends.register_autograd(lambda context, slope: (slope, None, None, None))


def test_whole_blocks_would_be_compiled_anew_for_each_packed_row(scorer, monkeypatch):
    """With one call of attention a layer, as on a card; pair by pair it is the same, and takes a minute."""
    graphs, compiled = Graphs(), nn.Module.compile
    monkeypatch.setattr(attention, "why_not_varlen", lambda query, dtype: None)
    monkeypatch.setattr(
        varlen,
        "flash",
        lambda query, key, value, at, *_: attends(query, at.ends_q_S1, at.ends_k_S1, at.longest_q),
    )
    monkeypatch.setattr(nn.Module, "compile", lambda module, **more: compiled(module, backend=graphs, **more))
    scorer.model.transformer.apply_compile()
    with torch._dynamo.config.patch(recompile_limit=64):  # at 8, torch's own, they would be compiled no more
        counted = graphs_after_each_row(scorer, graphs)
    assert np.all(np.diff(counted) > 0)


def test_norms_and_mlps_are_compiled_for_rows_of_any_length(scorer):
    graphs = Graphs()
    compile_regions(scorer.model, graphs)
    counted = graphs_after_each_row(scorer, graphs)
    assert counted[0] > 0
    assert len(set(counted[1:])) == 1


def test_its_checkpointing_gives_the_bits_of_ours_under_other_names(scorer):
    pairs, transformer = some_pairs(), scorer.model.transformer
    checkpoint_layers(scorer.model, 0)
    sums, gradients = scores_and_gradients(scorer, pairs, "packed")
    scorer.model.gradient_checkpointing_disable()
    transformer.apply_activation_checkpointing(TransformerActivationCheckpointingMode.full)
    their_sums, theirs = scores_and_gradients(scorer, pairs, "packed")
    assert torch.equal(their_sums, sums)
    assert all(torch.equal(*both) for both in zip(theirs.values(), gradients.values(), strict=True))
    renamed = {name for name in theirs if "_checkpoint_wrapped_module" in name}
    assert renamed == theirs.keys() - gradients.keys()
    assert len(renamed) == sum(1 for _ in transformer.blocks.parameters())
