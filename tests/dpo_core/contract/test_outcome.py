"""Whether chance alone would move a figure as far: probabilities worked out by hand."""

import math

import pytest

from dpo_core.contract.outcome import (
    EXACT_UNTIL,
    accuracy_outcome,
    measured_outcome,
    paired_outcome,
    sign_test,
)


def test_of_five_changes_all_for_the_better_chance_does_as_much_in_two_of_32_cases():
    assert sign_test(5, 0) == sign_test(0, 5) == pytest.approx(2 / 32)
    assert sign_test(6, 1) == pytest.approx(2 * (1 + 7) / 128)


def test_as_many_for_the_better_as_for_the_worse_is_no_change():
    assert sign_test(0, 0) == sign_test(3, 3) == 1


def test_beyond_the_exact_ones_the_normal_distribution_goes_on_where_they_end():
    lost = EXACT_UNTIL // 2 - 40
    exact = sign_test(EXACT_UNTIL - lost, lost)
    assert sign_test(EXACT_UNTIL - lost + 1, lost) == pytest.approx(exact, rel=0.1)


def test_only_items_that_changed_tell_something():
    judged = [(True, True)] * 50 + [(False, True)] * 5 + [(False, False)] * 45
    outcome = paired_outcome("kept", judged)
    assert (outcome.before, outcome.after, outcome.chance) == (0.5, 0.55, pytest.approx(2 / 32))
    assert not outcome.rose(0.05)
    assert outcome.rose(0.07)
    assert not outcome.fell(0.07)
    assert paired_outcome("kept", []) is None


def test_an_accuracy_is_compared_with_one_half_or_with_the_one_before():
    assert accuracy_outcome("a", 0.5, 1.0, 6).chance == pytest.approx(2 / 64)
    both = accuracy_outcome("a", 0.6, 0.7, 100)
    assert both.chance == pytest.approx(math.erfc(0.1 / math.sqrt((0.24 + 0.21) / 100) / math.sqrt(2)))


def test_two_standard_errors_are_what_the_tables_say():
    assert measured_outcome("m", 1.0, 1.2, 0.1).chance == pytest.approx(0.0455, abs=1e-4)
    assert measured_outcome("m", 1.0, 1.2, 0.0).chance == 1


def test_it_is_said_in_words():
    assert accuracy_outcome("accuracy", 0.5, 0.85, 100).in_words == "accuracy 0.50 to 0.85 (p < 0.001)"
    assert accuracy_outcome("accuracy", 0.5, 0.75, 4).in_words == "accuracy 0.50 to 0.75 (p = 0.62)"
