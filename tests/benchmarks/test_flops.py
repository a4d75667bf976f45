"""The operations of a step, counted by hand for one pair."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.flops import forward_flops, matmul_peak, padded_flops
from dpo_core.data.pair_dataset import PairDataset
from tests.tiny_stage import TinyStage


@pytest.fixture
def model(tmp_path) -> Path:
    """2 layers, hidden 8, 2 heads of 4, 1 key head, inner size 16, vocabulary 50."""
    config = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 16,
        "vocab_size": 50,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_one_pair_counted_by_hand(model, tmp_path):
    stage = TinyStage.make(tmp_path / "stage", num_rows=4, held_out="0")
    dataset = PairDataset.open(stage.data.path, "train")
    prefix, (chosen, rejected) = int(dataset.prefix_lengths[0]), dataset.lengths[0].tolist()
    # A layer: q 8x8, k and v 8x4, o 8x8 = 192; gate, up, down 3 x 8x16 = 384.
    tokens = chosen + rejected - prefix
    visible = sum(range(1, chosen + 1)) + sum(prefix + place for place in range(1, rejected - prefix + 1))
    trained = int(dataset[0].chosen_trained.sum() + dataset[0].rejected_trained.sum())
    expected = 2 * tokens * 2 * (192 + 384) + 4 * 2 * 8 * visible + 2 * 8 * 50 * trained
    assert forward_flops(dataset, np.array([0]), model) == expected


def test_a_padded_batch_counted_by_hand(model):
    """Two pairs in one batch are four rows of five tokens; the third is a batch of two rows of three."""
    token, logits = 2 * 2 * (192 + 384), 2 * 8 * 50
    expected = 4 * (5 * (token + logits) + 4 * 2 * 8 * 15) + 2 * (3 * (token + logits) + 4 * 2 * 8 * 6)
    assert padded_flops(np.array([[3, 5], [2, 4], [3, 1]]), 2, model) == expected


def test_the_peak_is_a_rate():
    assert 1e9 < matmul_peak(torch.float32, seconds=0.1) < 1e14
