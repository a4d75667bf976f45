"""Every row is counted once, the first offenders are kept, and too many drops are an error that says which rows."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_core.contract.drops import MEANING
from dpo_core.contract.errors import DataError
from dpo_core.contract.refs import ResolvedSource
from dpo_core.data.ledger import MAX_OFFENDERS, SourceTally, check_drops

COLUMNS = ("chosen", "rejected")


def _add(tally, *rows):
    """Add one part of the pool: (row, times, format, reason or None, truncated) each. Of every third row a part of an
    answer is left out; a dropped row's detail is its reason in capitals."""
    numbers, times, formats, reasons, truncated = zip(*rows, strict=True)
    facts = pa.record_batch(
        {
            "row": pa.array(numbers, pa.int64()),
            "number": pa.array([0] * len(rows), pa.int32()),
            "format": pa.array(formats, pa.string()),
            "reason": pa.array(reasons, pa.string()),
            "truncated": pa.array(truncated, pa.bool_()),
            "left_out": pa.array([number % 3 == 0 for number in numbers], pa.bool_()),
            "prompt_left_out": pa.array([number % 2 == 0 for number in numbers], pa.bool_()),
            "replaced": pa.array([number % 5 == 0 for number in numbers], pa.bool_()),
            "prompt_passed_by": pa.array([number % 4 == 0 for number in numbers], pa.bool_()),
            "prompt_repeated": pa.array([number == 0 for number in numbers], pa.bool_()),
            "unnamed_role": pa.array([number % 2 == 1 for number in numbers], pa.bool_()),
            "detail": pa.array([(reason or "").upper() for reason in reasons], pa.string()),
        }
    )
    tally.add(facts, np.array(times))


def _tally(available_rows=5):
    return SourceTally(ResolvedSource(label="set", content="x"), available_rows)


def _ledger(kept=0, mismatched=0, label="set"):
    tally = SourceTally(ResolvedSource(label=label, content="x"), available_rows=kept + mismatched)
    for row in range(kept):
        _add(tally, (row, 1, "messages", None, row == 0))
    for row in range(kept, kept + mismatched):
        _add(tally, (row, 1, "hh_rlhf", "prompt_mismatch", False))
    return tally.close(kept + mismatched)


def test_rows_in_is_kept_plus_dropped_with_repetitions():
    tally = _tally()
    _add(tally, (0, 3, "messages", None, True), (2, 2, "messages", "empty_answer", False))
    _add(tally, (4, 1, "unrecognised", "not_a_preference_row", False))
    ledger = tally.close(6)
    assert (ledger.available_rows, ledger.rows_in, ledger.kept, ledger.truncated) == (5, 6, 3, 3)
    assert ledger.dropped == {"empty_answer": 2, "not_a_preference_row": 1}
    assert ledger.rows_in == ledger.kept + sum(ledger.dropped.values())
    assert ledger.offenders == {"empty_answer": (2,), "not_a_preference_row": (4,)}
    assert ledger.format == {"messages": 5, "unrecognised": 1}
    assert (ledger.left_out_in_part, ledger.left_out_rows, ledger.prompt_left_out) == (3, (0,), 3)
    assert (ledger.replaced, ledger.replaced_rows) == (3, (0,))
    assert (ledger.prompt_passed_by, ledger.prompt_passed_by_rows) == (3, (0,))
    assert (ledger.prompt_repeated, ledger.prompt_repeated_rows) == (3, (0,))
    assert (ledger.unnamed_role, ledger.unnamed_role_rows) == (0, ())
    assert ledger.details == {
        "empty_answer": ("EMPTY_ANSWER",),
        "not_a_preference_row": ("NOT_A_PREFERENCE_ROW",),
    }


FATES = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.sampled_from(["messages", "hh_rlhf"]),
        st.sampled_from([None, None, *MEANING]),
        st.booleans(),
    ),
    min_size=1,
    max_size=60,
)


@given(FATES, st.integers(1, 30))
def test_counting_by_parts_is_counting_row_by_row(fates, rows_per_part):
    rows = [(number, *fate) for number, fate in enumerate(fates)]
    by_part, by_row = _tally(), _tally()
    for first in range(0, len(rows), rows_per_part):
        _add(by_part, *rows[first : first + rows_per_part])
    for row in rows:
        _add(by_row, row)
    assert by_part == by_row
    assert by_part.kept == sum(times for _, times, _, reason, _ in rows if reason is None)
    assert by_part.marked["truncated"] == sum(
        times for _, times, _, reason, truncated in rows if reason is None and truncated
    )
    left_out = [(number, times) for number, times, _, reason, _ in rows if reason is None and number % 3 == 0]
    assert by_part.marked["left_out"] == sum(times for _, times in left_out)
    assert by_part.marked_rows["left_out"] == [number for number, _ in left_out][:MAX_OFFENDERS]
    for reason, offenders in by_part.offenders.items():
        assert offenders == [number for number, *_, found, _ in rows if found == reason][:MAX_OFFENDERS]


def test_a_lost_row_is_noticed():
    tally = _tally()
    _add(tally, (0, 1, "messages", None, False))
    with pytest.raises(AssertionError, match="lost"):
        tally.close(2)


def test_only_the_first_offenders_are_kept():
    ledger = _ledger(kept=3, mismatched=50)
    assert ledger.offenders["prompt_mismatch"] == tuple(range(3, 3 + MAX_OFFENDERS))
    assert ledger.dropped["prompt_mismatch"] == 50


def test_the_threshold_holds_per_source():
    check_drops([_ledger(5, 5), _ledger(9, 0)], 0.5, [COLUMNS] * 2)
    with pytest.raises(
        DataError,
        match=r"bad: 6 of 10 rows dropped: 6 prompt_mismatch .*: “PROMPT_MISMATCH”; rows 4, 5, 6, 7, 8, \.\.\.",
    ):
        check_drops([_ledger(90), _ledger(4, 6, label="bad")], 0.5, [COLUMNS] * 2)


def test_a_source_that_loses_everything_is_an_error_at_any_threshold():
    with pytest.raises(DataError, match=r"No row is left.*columns are chosen, rejected"):
        check_drops([_ledger(9), _ledger(0, 2)], 1.0, [COLUMNS] * 2)


def test_a_mixture_of_no_rows_is_an_error():
    with pytest.raises(DataError, match="ask for 0 rows"):
        check_drops([_ledger()], 1.0, [COLUMNS])
    check_drops([_ledger(), _ledger(1)], 0.0, [COLUMNS] * 2)
