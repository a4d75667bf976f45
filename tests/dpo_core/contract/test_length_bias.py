"""How often the longer answer is chosen, and from when on that is said to be too often."""

import pytest

from dpo_core.contract.data_jobs import SourceLedger
from dpo_core.contract.length_bias import length_bias_warning, longer_is_chosen


def ledger(chosen: int, rejected: int, label: str = "a") -> SourceLedger:
    rows = chosen + rejected + 5  # five of one length
    return SourceLedger(
        label=label,
        content="c",
        format={"messages": rows},
        available_rows=rows,
        rows_in=rows,
        kept=rows,
        truncated=0,
        dropped={},
        offenders={},
        longer_chosen=chosen,
        longer_rejected=rejected,
    )


def test_pairs_of_one_length_count_for_neither():
    assert longer_is_chosen([ledger(60, 20), ledger(0, 20)]) == (0.6, 100)
    assert longer_is_chosen([ledger(0, 0)]) == (None, 0)


@pytest.mark.parametrize(
    ("chosen", "rejected", "warns"),
    [
        (60, 40, True),
        (59, 41, False),
        (50, 50, False),
        (41, 59, False),
        (40, 60, True),
        (59, 40, False),
        (0, 0, False),
    ],
)
def test_three_of_five_is_a_bias_either_way_where_there_are_enough_pairs(chosen, rejected, warns):
    warning = length_bias_warning([ledger(chosen, rejected)])
    assert (warning is not None) == warns
    if warning:
        assert f"{chosen} % of 100 pairs (a)" in warning


def test_a_biased_source_is_named_though_the_whole_is_even():
    warning = length_bias_warning([ledger(90, 10, "long"), ledger(10, 90, "short"), ledger(50, 50, "even")])
    assert "90 % of 100 pairs (long), 10 % of 100 pairs (short)" in warning
    assert "even" not in warning
    assert "all sources" not in warning
