"""Floating-point operations of a step, counting only what the shared computation needs, and the machine's matmul peak.

For a pair with p shared tokens, c more of chosen and r more of rejected, and n = p + c + r tokens in all:

    body       2 n W            W: weights of all linear layers of the decoder (a product and a sum each)
    attention  4 L A v          L layers, A = heads x head size, v visible (query, key): (p+c)(p+c+1)/2 + r p + r(r+1)/2
    head       2 H V k          H hidden size, V vocabulary, k trained tokens of both sides

A training step is three times the forward (the backward multiplies twice). Not counted: norms, rotations, softmax, the
optimizer, padding, recomputation.
"""

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dpo_core.data.pair_dataset import PairDataset

PEAK_SIZE = 2048


@dataclass(frozen=True, slots=True)
class Prices:
    """Operations of a Llama-shaped model's forward."""

    token: float  # all linear layers
    visible: float  # a (query, key) that attention looks at
    logits: float  # of one token

    @classmethod
    def of(cls, model: Path) -> "Prices":
        """Of the model in a folder."""
        config = json.loads((model / "config.json").read_text())
        hidden, layers, heads = (
            config[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")
        )
        size = config.get("head_dim") or hidden // heads
        attention_weights = 2 * hidden * size * (heads + config["num_key_value_heads"])
        weights = layers * (attention_weights + 3 * hidden * config["intermediate_size"])
        return cls(2.0 * weights, 4.0 * layers * heads * size, 2.0 * hidden * config["vocab_size"])


def padded_flops(lengths_N2: np.ndarray, pairs_per_batch: int, model: Path) -> float:
    """Operations of a plain forward over pairs with sequences of these lengths, in order: both sides of ``pairs_per_batch``
    pairs as rows, padded to the longest of them, every logit. What a peer computes that shares and packs nothing."""
    prices, total = Prices.of(model), 0.0
    for first in range(0, len(lengths_N2), pairs_per_batch):
        lengths = lengths_N2[first : first + pairs_per_batch].astype(float)
        rows, longest = lengths.size, lengths.max()
        total += rows * (
            longest * (prices.token + prices.logits) + prices.visible * longest * (longest + 1) / 2
        )
    return total


def forward_flops(dataset: PairDataset, rows: np.ndarray, model: Path) -> float:
    """Operations of one shared forward over these rows, of a Llama-shaped model in folder ``model``."""
    prices = Prices.of(model)
    prefix = dataset.prefix_lengths[rows].astype(float)
    chosen, rejected = (dataset.lengths[rows] - prefix[:, None]).T
    visible = (
        (prefix + chosen) * (prefix + chosen + 1) / 2 + rejected * prefix + rejected * (rejected + 1) / 2
    )
    trained = sum(
        int(dataset[row].chosen_trained.sum() + dataset[row].rejected_trained.sum()) for row in rows
    )
    tokens = (prefix + chosen + rejected).sum()
    return float(tokens * prices.token + visible.sum() * prices.visible + trained * prices.logits)


def matmul_peak(dtype: torch.dtype, seconds: float = 2.0) -> float:
    """Operations a second of a square matrix product with all threads: the median of repeats over ``seconds``."""
    left, right = (torch.randn(PEAK_SIZE, PEAK_SIZE).to(dtype) for _ in range(2))
    end, times = time.perf_counter() + seconds, []
    while time.perf_counter() < end or len(times) < 5:
        started = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - started)
    return 2 * PEAK_SIZE**3 / statistics.median(times)
