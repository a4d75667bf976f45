"""The pool on disk: rows gathered as bytes are those that are gathered as arrays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_core.data.pair_file import pairs_batch, row_key
from dpo_core.data.pairs import TokenizedPair
from dpo_core.data.pool import Chunk, _Outcome, _part
from dpo_core.data.pool_file import PoolReader, open_pool

SIDE = st.integers(1, 9)
ROWS = st.lists(st.none() | st.tuples(SIDE, SIDE), min_size=1, max_size=20)


def _outcome(row, sides, random) -> _Outcome:
    if sides is None:
        return _Outcome(row, reason="empty_answer")
    arrays = [
        part
        for length in sides
        for part in (random.randint(0, 9, length).astype(np.int32), random.rand(length) < 0.5)
    ]
    return _Outcome(row, prompt_key="0" * 32, pair=TokenizedPair(row_key(arrays), *arrays))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pool")


@settings(max_examples=50, deadline=None)
@given(ROWS, st.integers(0, 2**32 - 1))
def test_rows_as_bytes_are_the_rows_as_arrays(folder, rows, seed):
    random = np.random.RandomState(seed)
    outcomes = [_outcome(row, sides, random) for row, sides in enumerate(rows)]
    with open_pool(folder) as write:
        for first in range(0, len(rows), 7):
            numbers = np.arange(first, min(first + 7, len(rows)))
            write(_part(Chunk(0, numbers), [outcomes[i] for i in numbers]))
    with PoolReader(folder) as pool:
        places = random.permutation(np.flatnonzero(pool.is_kept))
        made = pool.batch(places)
        columns = (pool.prefix_lengths, pool.sources, pool.weights, pool.margins)
        twin = pairs_batch(pool.pairs(places), *(column[places] for column in columns))
        assert made.serialize().equals(twin.serialize())  # as bytes: a margin that is none is not itself
        made.validate(full=True)
        assert made.column("row_key").to_pylist() == [outcomes[i].pair.row_key for i in places]
