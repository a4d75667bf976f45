"""Pairs written to Arrow files come back as they were, over several batches, and are keyed by content."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_core.data.pair_file import ROWS_SCHEMA, SIDES, ArrowRows, common_prefix_length, pairs_batch, row_key
from dpo_core.data.pairs import TokenizedPair

IDS = st.lists(st.integers(0, 5), max_size=8)


def _pair(seed):
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 9, size=2)
    arrays = [kind(size) for size in lengths for kind in (lambda n: draw.integers(0, 99, n).astype(np.int32),
                                                        lambda n: draw.integers(0, 2, n).astype(bool))]
    return TokenizedPair(row_key(arrays), *arrays)


def test_rows_of_several_batches_are_read_by_number(tmp_path):
    pairs = [_pair(seed) for seed in range(23)]
    prefixes = list(range(23))
    with pa.OSFile(str(tmp_path / "rows"), "wb") as sink, pa.ipc.new_file(sink, ROWS_SCHEMA) as writer:
        for first in range(0, 23, 5):
            writer.write_batch(pairs_batch(pairs[first:first + 5], prefixes[first:first + 5]))
    rows = ArrowRows(tmp_path / "rows")
    assert len(rows) == 23
    for i in (22, 0, 4, 5, 19, 20):
        for side in SIDES:
            assert rows.ragged(side, i).tolist() == getattr(pairs[i], side).tolist()
    assert rows.texts("row_key") == [pair.row_key for pair in pairs]
    assert rows.column("prefix_length").tolist() == prefixes
    assert rows.scalar("chosen_length", 7) == len(pairs[7].chosen_ids)
    for outside in (23, -1):
        with pytest.raises(IndexError):
            rows.ragged("chosen_ids", outside)


@given(IDS, IDS)
def test_common_prefix(left, right):
    length = common_prefix_length(np.array(left), np.array(right))
    assert left[:length] == right[:length]
    assert left[length:length + 1] != right[length:length + 1] or length == min(len(left), len(right))


def test_row_keys_tell_contents_apart():
    a, b = np.array([1, 2], dtype=np.int32), np.array([True, False])
    keys = {row_key(arrays) for arrays in ((a, b, a, b), (a, ~b, a, b), (a, b, a[:1], b[:1]), (a[:1], b[:1], a, b))}
    assert len(keys) == 4
    assert row_key((a, b, a, b)) == row_key((a.copy(), b.copy(), a.copy(), b.copy()))
