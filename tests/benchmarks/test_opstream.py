"""The operators of a microbatch: how many a layer takes, whatever the pairs, and what some are priced at by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import LlamaConfig

from benchmarks import opstream, results
from benchmarks.fake_step import made_batch
from benchmarks.opstream import OpStream, deep_stream, stream_of, visible_pairs
from benchmarks.opstream_page import AUDITED, KERNELS_BAR, PRODUCTS_BAR
from dpo_core.data.pair_batch import collate
from tests.tiny_pairs import make_pair

REPOSITORY = Path(__file__).parents[2]
SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
A_LAYER = {"bf16": (203, 48), "bf16_pure": (167, 12)}
"""Precision -> kernels and casts of a layer's forward, forward again and backward: more means that casts came back."""


def layer_by_layer(pairs: int, precision: str) -> tuple[OpStream, OpStream]:
    batch = made_batch(pairs, 6, 9)
    one, two = (stream_of(LlamaConfig(**SIZES, num_hidden_layers=n), batch, precision) for n in (1, 2))
    return one, two


@pytest.mark.parametrize("precision", A_LAYER)
def test_a_layer_takes_so_many_kernels_and_casts_whatever_the_pairs(precision):
    one, two = layer_by_layer(1, precision)
    kernels, casts = A_LAYER[precision]
    assert sum(two.kernels.values()) - sum(one.kernels.values()) <= kernels
    assert two.kernels["_to_copy"] - one.kernels["_to_copy"] <= casts
    more = stream_of(LlamaConfig(**SIZES, num_hidden_layers=1), made_batch(5, 6, 9), precision)
    assert more.kernels == one.kernels


def test_a_deep_model_is_what_its_second_layer_adds():
    batch = made_batch(2, 6, 9)
    told = deep_stream(SIZES, 3, batch, "bf16_pure")
    counted = stream_of(LlamaConfig(**SIZES, num_hidden_layers=3), batch, "bf16_pure")
    assert told.kernels == counted.kernels
    assert told.calls == counted.calls
    assert told.figures()["gpu_ms"] == pytest.approx(counted.figures()["gpu_ms"])


@pytest.mark.integration  # seconds
def test_the_recipe_for_8b_keeps_the_bars_by_its_own_arithmetic():
    recipe = yaml.safe_load((REPOSITORY / "recipes/tulu3-8b.yaml").read_text())
    assert (recipe["compute"]["sharding"], recipe["train"]["precision"]) == ("fsdp2", "bf16")
    batch = made_batch(16, opstream.PREFIX, opstream.ANSWER)
    precision = opstream.HELD[opstream.OF_RECIPE]
    found = deep_stream(opstream.SIZES, opstream.LAYERS, batch, precision).figures()
    assert found["in_products"] >= PRODUCTS_BAR
    assert found["kernels"] <= KERNELS_BAR * AUDITED["16"][0]


def priced(operator, *args) -> OpStream:
    stream = OpStream(0)
    stream.seen(operator, args, operator(*args))
    return stream


def test_prices_by_hand():
    half = torch.empty(4096, 8192, dtype=torch.bfloat16, device="meta")
    size = 4096 * 8192 * 2
    product = priced(torch.ops.aten.mm.default, half, half.t())
    assert product.seconds["mm"] == pytest.approx(2 * 4096 * 8192 * 4096 / opstream.PRODUCTS)
    assert product.figures()["in_products"] == 1
    added = priced(torch.ops.aten.add.Tensor, half, half[:1])  # a row, read once
    assert added.seconds["add"] == pytest.approx((2 * size + 8192 * 2) / opstream.MEMORY)
    expanded = priced(torch.ops.aten.mul.Tensor, half, half[:1].expand(4096, -1))
    assert expanded.seconds["mul"] == added.seconds["add"]
    in_place = priced(torch.ops.aten.mul_.Scalar, half, 2.0)
    assert in_place.seconds["mul_"] == pytest.approx(2 * size / opstream.MEMORY)
    rows = priced(
        torch.ops.aten.index_select.default, half, 0, torch.zeros(1024, dtype=torch.int64, device="meta")
    )
    assert rows.seconds["index_select"] == pytest.approx(2 * size / 4 / opstream.MEMORY)
    small = priced(torch.ops.aten.add.Tensor, half[:1], half[:1])
    assert small.seconds["add"] == opstream.START
    for operator, *args in (
        (torch.ops.aten.t.default, half),
        (torch.ops.aten.view.default, half, [-1]),
        (torch.ops.aten.empty_like.default, half),
    ):
        looked = priced(operator, *args)
        assert (looked.calls, sum(looked.kernels.values())) == (1, 0)


def test_visible_pairs_are_those_of_each_sequence():
    rng = np.random.default_rng(0)
    pairs = [make_pair(rng, *lengths) for lengths in ((3, 4, 2), (5, 1, 6))]
    batch = collate(pairs, range(2), "packed")
    by_hand = 0
    for prefix, chosen, rejected in batch.parts_B3.tolist():
        by_hand += sum(range(1, prefix + chosen + 1))
        by_hand += sum(prefix + number for number in range(1, rejected + 1))
    assert visible_pairs(batch) == by_hand


def test_the_page_says_what_is_reached():
    found = priced(torch.ops.aten.mm.default, torch.empty(2, 2), torch.empty(2, 2)).figures()
    figures = {"bf16 weights": {"16": found | {"in_products": 0.8, "kernels": 20_000}}}
    page = results.page({"opstream": {"machine": {"card": "none"}, "figures": figures}})
    assert "80.0% | at least 0.75: met | 20,000 | at most 13118: **not met**" in page
