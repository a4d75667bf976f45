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
from pathlib import Path

import numpy as np
import torch

from dpo_core.data.pair_dataset import PairDataset

PEAK_SIZE = 2048


def forward_flops(dataset: PairDataset, rows: np.ndarray, model: Path) -> float:
    """Operations of one shared forward over these rows, of a Llama-shaped model in folder ``model``."""
    config = json.loads((model / "config.json").read_text())
    hidden, layers, heads = (config[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    size = config.get("head_dim") or hidden // heads
    attention_weights = 2 * hidden * size * (heads + config["num_key_value_heads"])
    weights = layers * (attention_weights + 3 * hidden * config["intermediate_size"])
    prefix = dataset.prefix_lengths[rows].astype(float)
    chosen, rejected = (dataset.lengths[rows] - prefix[:, None]).T
    visible = (prefix + chosen) * (prefix + chosen + 1) / 2 + rejected * prefix + rejected * (rejected + 1) / 2
    trained = sum(int(dataset[row].chosen_trained.sum() + dataset[row].rejected_trained.sum()) for row in rows)
    return float(2 * (prefix + chosen + rejected).sum() * weights + 4 * layers * heads * size * visible.sum()
                 + 2 * hidden * config["vocab_size"] * trained)


def matmul_peak(dtype: torch.dtype, seconds: float = 2.0) -> float:
    """Operations a second of a square matrix product with all threads: the median of repeats over ``seconds``."""
    left, right = (torch.randn(PEAK_SIZE, PEAK_SIZE).to(dtype) for _ in range(2))
    end, times = time.perf_counter() + seconds, []
    while time.perf_counter() < end or len(times) < 5:
        started = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - started)
    return 2 * PEAK_SIZE**3 / statistics.median(times)
