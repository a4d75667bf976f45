"""Norms and MLPs compiled by themselves: the numbers of the model as it is, one compilation for rows of any length."""

import numpy as np
import pytest
import torch
from torch import nn

from dpo_core.contract.errors import ConfigError
from dpo_core.data.pair_batch import collate
from dpo_core.model import regions
from dpo_core.model.attention import PAIRWISE, set_kernel
from dpo_core.model.forward import PairScorer
from dpo_core.model.recompute import checkpoint_layers
from tests.tiny_architectures import PACKED, tiny
from tests.tiny_pairs import make_pair


class Graphs:
    """A back end that runs graphs as they are and counts them."""

    count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return graph


def test_the_numbers_are_the_same_and_other_lengths_take_no_other_graph():
    """Under checkpointing, as large models are trained."""
    plain, compiled = (PairScorer(tiny(PACKED["llama"]), "fp32") for _ in range(2))
    graphs, counted = Graphs(), []
    assert regions.compile_regions(compiled.model, graphs) == 2 * 3 + 1
    for scorer in (plain, compiled):
        scorer.stock_logits = False
        set_kernel(scorer.model, PAIRWISE["sdpa"])
        checkpoint_layers(scorer.model, 0)
        scorer.train()
    for seed in range(3):
        rng = np.random.default_rng(seed)
        batch = collate([make_pair(rng, *rng.integers(3, 30, 3)) for _ in range(2)], range(2), "packed")
        for scorer in (plain, compiled):
            scorer.zero_grad()
            scorer(batch).sums_S.sum().backward()
        for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
        counted.append(graphs.count)
    assert counted[0] > 0
    assert counted[1] == counted[2]  # the second length told which dimension is not fixed, at most
    assert [name for name, _ in compiled.named_parameters()] == [name for name, _ in plain.named_parameters()]


def test_a_mixture_of_experts_and_other_modules_are_left_alone():
    assert regions.regions(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))) == []
    assert not any("moe" in type(m).__name__.lower() for m in regions.regions(tiny(PACKED["mixtral"])))


def test_what_cannot_work_is_said_before_it_is_tried(monkeypatch):
    card = torch.device("cuda")
    assert not regions.are_compiled(torch.device("cpu"), "zero3")
    with pytest.raises(ConfigError, match="does not work with compute"):
        regions.are_compiled(card, "zero3")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="needs a C compiler"):
        regions.are_compiled(card, "fsdp2")
    monkeypatch.setenv("CC", "/opt/cc")
    assert regions.are_compiled(card, "fsdp2")
