"""Length histograms: every pair in one bin, and bins that fit."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_core.data.lengths import MAX_BINS, bin_width, histogram, length_stats


@given(st.lists(st.integers(0, 40_000), min_size=1, max_size=200))
def test_every_length_is_counted_in_its_bin(lengths):
    made = histogram(np.array(lengths), bin_width(max(lengths)))
    assert sum(made.counts) == len(lengths)
    assert len(made.counts) <= MAX_BINS
    for number, count in enumerate(made.counts):
        assert count == sum(
            number * made.bin_tokens <= length < (number + 1) * made.bin_tokens for length in lengths
        )
    assert made.longest == max(lengths)
    assert min(lengths) <= made.median <= made.p95 <= made.longest


@pytest.mark.parametrize(
    ("longest", "width"), [(0, 1), (39, 1), (40, 2), (79, 2), (80, 5), (2048, 100), (8192, 500)]
)
def test_bins_have_round_widths(longest, width):
    assert bin_width(longest) == width


def test_the_prompt_counts_once_and_both_splits_count():
    train = SimpleNamespace(
        lengths=np.array([[10, 12], [20, 25]], np.int32), prefix_lengths=np.array([8, 15], np.int32)
    )
    held_out = SimpleNamespace(lengths=np.array([[9, 7]], np.int32), prefix_lengths=np.array([5], np.int32))
    stats = length_stats([train, held_out])
    assert stats.total == 10 + 12 + 20 + 25 + 9 + 7
    assert stats.histograms["prompt"].longest == 15
    assert stats.histograms["chosen"].counts == (0, 0, 1, 0, 1, 1)  # 2, 5 and 4 tokens
    assert stats.histograms["rejected"].longest == 10
    assert stats.histograms["chosen"].bin_tokens == stats.histograms["rejected"].bin_tokens
