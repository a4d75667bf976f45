"""Amounts, order and the held-out split, as properties, and against the ``datasets`` library itself."""

import hashlib

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_core.contract.amount import num_held_out, num_selected
from dpo_core.contract.errors import DataError
from dpo_core.data.mixing import held_out_prompts, select_rows, shuffle_order, split_rows

AMOUNTS = st.one_of(st.integers(0, 60).map(str), st.floats(0, 4).map(lambda share: f"{share:.3f}"))
PROMPTS = st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=40)
SHARES = st.one_of(st.integers(0, 9).map(str), st.floats(0, 0.9).map(lambda share: f"{share:.2f}"))


def _keys(prompts):
    return np.array(list(prompts), dtype="S32")


def _drawn(prompts, amount, seed):
    return [key.decode() for key in held_out_prompts(_keys(prompts), amount, seed)]


def _split_slowly(prompts, amount, seed):
    """The split by dictionaries, row by row."""
    distinct = set(prompts)
    ranked = sorted(distinct, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    rank = {key: place for place, key in enumerate(ranked[: num_held_out(amount, len(distinct))])}
    train = np.array([i for i, key in enumerate(prompts) if key not in rank], dtype=np.int64)
    seen, held_out = {}, []
    for i, key in enumerate(prompts):
        if key in rank:
            held_out.append((seen.get(key, 0), rank[key], i))
            seen[key] = seen.get(key, 0) + 1
    return train[shuffle_order(len(train), seed)].tolist(), [i for _, _, i in sorted(held_out)]


@pytest.mark.parametrize(
    ("amount", "rows"),
    [
        ("1.0", 10),
        ("1", 1),
        ("0.5", 5),
        (".25", 2),
        ("3.", 30),
        ("2.55", 25),
        ("13", 13),
        ("0", 0),
        ("0.0", 0),
    ],
)
def test_a_dot_makes_a_proportion_and_its_absence_a_count(amount, rows):
    assert num_selected(amount, 10) == rows == len(select_rows(amount, 10))


@pytest.mark.parametrize("amount", ["999999999999", "999.0"])
def test_more_rows_than_any_mixture_has_are_refused(amount):
    with pytest.raises(DataError, match=r"asks for .* rows, more than"):
        select_rows(amount, 300_000)


@given(AMOUNTS, st.integers(1, 20))
def test_selection_is_whole_passes_then_a_draw_without_repetition(amount, num_rows):
    selection = select_rows(amount, num_rows)
    rows = selection.order()
    wanted = num_selected(amount, num_rows)
    passes, rest = divmod(wanted, num_rows)
    assert rows.dtype == np.int64
    assert len(rows) == len(selection) == wanted
    assert rows[: passes * num_rows].tolist() == list(range(num_rows)) * passes
    drawn = rows[passes * num_rows :].tolist()
    assert len(set(drawn)) == len(drawn) == rest
    assert drawn == np.random.RandomState(42).choice(num_rows, size=rest, replace=False).tolist()[:rest]


@given(AMOUNTS, st.integers(1, 20))
def test_a_selection_knows_its_different_rows_and_how_often_each_comes(amount, num_rows):
    selection = select_rows(amount, num_rows)
    distinct, times = np.unique(selection.order(), return_counts=True)
    assert list(selection.distinct) == distinct.tolist()
    assert selection.times(distinct).tolist() == times.tolist()


def test_whole_passes_hold_no_number_per_row():
    """Each of the processes that are forked would hold them, too: 24 bytes a row and process, once."""
    selection = select_rows("3.0", 1_000_000)
    assert selection.drawn.nbytes == selection.drawn_ascending.nbytes == 0
    assert isinstance(selection.distinct, range)
    assert select_rows("0.5", 1000).drawn.nbytes == 2000


def test_upsampling_by_hand():
    # numpy.random.RandomState(42).choice(5, 2, replace=False) is [1, 4]
    assert select_rows("2.4", 5).order().tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 1, 4]


@pytest.mark.parametrize("seed", [0, 8, 123])
def test_the_order_is_that_of_datasets_shuffle(seed):
    shuffled = datasets.Dataset.from_dict({"row": list(range(50))}).shuffle(seed=seed)
    assert shuffle_order(50, seed).tolist() == shuffled["row"][:]


@given(PROMPTS, SHARES, st.integers(0, 99))
def test_the_split_by_arrays_is_the_one_by_dictionaries(prompts, amount, seed):
    train, held_out = split_rows(_keys(prompts), amount, seed)
    assert (train.tolist(), held_out.tolist()) == _split_slowly(prompts, amount, seed)


@given(PROMPTS, SHARES, st.integers(0, 99))
def test_no_prompt_stands_on_both_sides_and_no_row_is_lost(prompts, amount, seed):
    train, held_out = split_rows(_keys(prompts), amount, seed)
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(len(prompts)))
    of_train, of_held_out = {prompts[i] for i in train}, {prompts[i] for i in held_out}
    assert not of_train & of_held_out
    assert len(of_held_out) == min(num_held_out(amount, len(set(prompts))), len(set(prompts)))


@given(PROMPTS, st.integers(0, 99), st.randoms())
def test_the_held_out_prompts_depend_on_seed_and_content_not_on_order(prompts, seed, random):
    again = list(prompts)
    random.shuffle(again)
    assert _drawn(prompts, "0.4", seed) == _drawn(again, "0.4", seed)


@given(PROMPTS, st.integers(0, 99))
def test_another_row_only_displaces_what_was_drawn_last(prompts, seed):
    before, after = _drawn(prompts, "3", seed), _drawn([*prompts, "z"], "3", seed)
    assert [prompt for prompt in after if prompt != "z"] == before[: len(after) - ("z" in after)]


@given(PROMPTS, st.integers(1, 10), st.integers(0, 99))
def test_the_first_held_out_rows_are_different_prompts(prompts, wanted, seed):
    _, held_out = split_rows(_keys(prompts), str(wanted), seed)
    drawn = [prompts[i] for i in held_out]
    distinct = len(set(drawn))
    assert len(set(drawn[:distinct])) == distinct


@pytest.mark.parametrize(
    ("amount", "prompts", "expected"),
    [
        ("0", 50, 0),
        ("0.0", 50, 0),
        ("0.05", 100, 5),
        ("0.05", 4, 1),
        ("0.05", 1, 0),
        ("1.0", 1, 1),
        ("7", 50, 7),
    ],
)
def test_amount_of_held_out_prompts(amount, prompts, expected):
    assert num_held_out(amount, prompts) == expected


def test_without_held_out_prompts_the_whole_mixture_is_shuffled():
    train, held_out = split_rows(_keys("aabbc"), "0", seed=8)
    assert train.tolist() == shuffle_order(5, 8).tolist()
    assert len(held_out) == 0


def test_another_seed_draws_other_prompts():
    prompts = [str(i) for i in range(100)]
    assert _drawn(prompts, "10", 1) != _drawn(prompts, "10", 2)
