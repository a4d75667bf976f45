"""Pairs written to Arrow files come back as they were, over several batches, and are keyed by content."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_core.data import pair_file
from dpo_core.data.pair_file import ROWS_SCHEMA, SIDES, ArrowRows, common_prefix_length, pairs_batch, row_key
from dpo_core.data.pairs import TokenizedPair

IDS = st.lists(st.integers(0, 5), max_size=8)


def batch_of(pairs, prefixes) -> pa.RecordBatch:
    """Rows of one source without numbers of their own."""
    size = len(pairs)
    return pairs_batch(pairs, prefixes, np.zeros(size, np.int32), np.ones(size), np.full(size, np.nan))


def _pair(seed):
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 9, size=2)
    arrays = [
        kind(size)
        for size in lengths
        for kind in (
            lambda n: draw.integers(0, 99, n).astype(np.int32),
            lambda n: draw.integers(0, 2, n).astype(bool),
        )
    ]
    return TokenizedPair(row_key(arrays), *arrays)


def test_rows_of_several_batches_are_read_by_number(tmp_path):
    pairs = [_pair(seed) for seed in range(23)]
    prefixes = list(range(23))
    with pa.OSFile(str(tmp_path / "rows"), "wb") as sink, pa.ipc.new_file(sink, ROWS_SCHEMA) as writer:
        for first in range(0, 23, 5):
            writer.write_batch(batch_of(pairs[first : first + 5], prefixes[first : first + 5]))
    rows = ArrowRows(tmp_path / "rows")
    assert len(rows) == 23
    for i in (22, 0, 4, 5, 19, 20):
        for side in SIDES:
            assert rows.ragged(side, i).tolist() == getattr(pairs[i], side).tolist()
    assert rows.keys("row_key").tolist() == [pair.row_key.encode() for pair in pairs]
    assert rows.column("prefix_length").tolist() == prefixes
    assert rows.scalar("chosen_length", 7) == len(pairs[7].chosen_ids)
    for outside in (23, -1):
        with pytest.raises(IndexError):
            rows.ragged("chosen_ids", outside)


def test_rows_stay_valid_when_their_pages_are_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(pair_file, "READS_BETWEEN_RELEASES", 3)
    pairs = [_pair(seed) for seed in range(20)]
    with pa.OSFile(str(tmp_path / "rows"), "wb") as sink, pa.ipc.new_file(sink, ROWS_SCHEMA) as writer:
        writer.write_batch(batch_of(pairs, [0] * 20))
    rows = ArrowRows(tmp_path / "rows")
    views = [rows.ragged("chosen_ids", i) for i in range(20)]
    rows.release()
    assert [view.tolist() for view in views] == [pair.chosen_ids.tolist() for pair in pairs]


def test_keys_may_be_empty_and_batches_sliced(tmp_path):
    texts = ["a" * 32, "b" * 32, "", "c" * 32, "d" * 32, "e" * 32]
    batch = pa.record_batch({"key": pa.array(texts)})
    with pa.OSFile(str(tmp_path / "rows"), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        for start, length in ((0, 2), (2, 1), (1, 3), (4, 2)):
            writer.write_batch(batch.slice(start, length))
    expected = [*texts[:2], texts[2], *texts[1:4], *texts[4:]]
    assert ArrowRows(tmp_path / "rows").keys("key").tolist() == [text.encode() for text in expected]


@given(IDS, IDS)
def test_common_prefix(left, right):
    length = common_prefix_length(np.array(left), np.array(right))
    assert left[:length] == right[:length]
    assert left[length : length + 1] != right[length : length + 1] or length == min(len(left), len(right))


def test_row_keys_tell_contents_apart():
    a, b = np.array([1, 2], dtype=np.int32), np.array([True, False])
    keys = {
        row_key(arrays)
        for arrays in ((a, b, a, b), (a, ~b, a, b), (a, b, a[:1], b[:1]), (a[:1], b[:1], a, b))
    }
    assert len(keys) == 4
    assert row_key((a, b, a, b)) == row_key((a.copy(), b.copy(), a.copy(), b.copy()))
