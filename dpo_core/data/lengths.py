"""How long the pairs of a mixture are, in tokens: means, quantiles, histograms."""

from collections.abc import Sequence

import numpy as np

from dpo_core.contract.data_jobs import LengthHistogram, LengthStats
from dpo_core.data.pair_dataset import PairDataset

MAX_BINS = 40


def length_stats(splits: Sequence[PairDataset]) -> LengthStats:
    """Measure lengths over both splits. A pair's prompt is counted up to where its two sides part."""
    lengths = np.concatenate([split.lengths for split in splits]).astype(np.int64)
    prefixes = np.concatenate([split.prefix_lengths for split in splits]).astype(np.int64)
    answers = lengths - prefixes[:, None]
    prompt, (chosen, rejected) = prefixes.mean(), answers.mean(axis=0)
    prompt_bin, answer_bin = bin_width(int(prefixes.max())), bin_width(int(answers.max()))
    return LengthStats(
        mean_prompt=round(float(prompt), 1),
        mean_chosen=round(float(chosen), 1),
        mean_rejected=round(float(rejected), 1),
        max_sequence=int(lengths.max()),
        total=int(lengths.sum()),
        histograms={
            "prompt": histogram(prefixes, prompt_bin),
            "chosen": histogram(answers[:, 0], answer_bin),
            "rejected": histogram(answers[:, 1], answer_bin),
        },
    )


def bin_width(longest: int) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50, ... that covers 0 to ``longest`` with at most ``MAX_BINS`` bins."""
    power = 1
    while True:
        for width in (power, 2 * power, 5 * power):
            if longest < width * MAX_BINS:
                return width
        power *= 10


def histogram(lengths_N: np.ndarray, bin_tokens: int) -> LengthHistogram:
    """Return counts per bin up to the longest, int [N] in."""
    counts = np.bincount(lengths_N // bin_tokens)
    return LengthHistogram(
        bin_tokens=bin_tokens,
        counts=tuple(counts.tolist()),
        median=float(np.median(lengths_N)),
        p95=float(np.percentile(lengths_N, 95)),
        longest=int(lengths_N.max()),
    )
