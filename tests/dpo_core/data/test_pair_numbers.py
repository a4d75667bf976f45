"""A pair's weight and margin: what is a number, and what goes with which reason."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_core.contract.drops import RowDropped
from dpo_core.data.pair_numbers import pair_numbers

BOTH = {"weight": "w", "margin": "m"}


@given(weight=st.floats(1e-6, 1e6), margin=st.floats(0, 1e6), as_text=st.booleans())
def test_numbers_are_taken_and_text_of_one(weight, margin, as_text):
    kind = str if as_text else float
    assert pair_numbers({"w": kind(weight), "m": kind(margin)}, BOTH, "messages") == (weight, margin)


def test_a_source_that_names_no_column_has_neither():
    weight, margin = pair_numbers({"weight": 5, "margin": 7}, {"chosen": "winner"}, "messages")
    assert weight == 1
    assert math.isnan(margin)


@pytest.mark.parametrize(
    "value", [None, math.nan, math.inf, -math.inf, -0.5, True, "", [1], {}, 1e7, 10**400, "nan"]
)
def test_what_is_no_number_from_0_on_drops_the_row(value):
    for column, reason in (("w", "bad_weight"), ("m", "bad_margin")):
        with pytest.raises(RowDropped) as dropped:
            pair_numbers({"w": 1, "m": 1} | {column: value}, BOTH, "messages")
        assert (dropped.value.reason, dropped.value.format) == (reason, "messages")


@pytest.mark.parametrize(
    ("weight", "reason"), [(0, "zero_weight"), (-0.0, "zero_weight"), (1e-9, "bad_weight")]
)
def test_a_weight_that_trains_nothing_drops_the_row(weight, reason):
    with pytest.raises(RowDropped) as dropped:
        pair_numbers({"w": weight, "m": 0}, BOTH, "messages")
    assert dropped.value.reason == reason
