"""Equal rows: found by sorting as by comparing each with each."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dpo_core.data.duplicates import exact_duplicates

ROWS = st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 2)), max_size=40)


def _one_by_one(rows, keep_last):
    """The slow twin: walk through the rows and remember which was first."""
    places, stays, first = [], [], {}
    numbered = list(enumerate(rows))
    for place, (key, looked_at, group) in reversed(numbered) if keep_last else numbered:
        if looked_at and (key, group) in first:
            places.append(place)
            stays.append(first[key, group])
        elif looked_at:
            first[key, group] = place
    order = np.argsort(places) if places else []
    return [places[i] for i in order], [stays[i] for i in order]


@given(ROWS, st.booleans())
def test_sorting_finds_what_comparing_finds(rows, keep_last):
    keys = np.array([f"{key:032d}" for key, _, _ in rows], dtype="S32")
    looked_at = np.array([at for _, at, _ in rows], dtype=bool)
    groups = np.array([group for _, _, group in rows], dtype=np.int32)
    places, stays = exact_duplicates(keys, looked_at, groups, keep_last)
    assert (places.tolist(), stays.tolist()) == _one_by_one(rows, keep_last)
