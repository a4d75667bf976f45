"""Whether chance alone would move a figure as far: probabilities worked out by hand."""

import math

import pytest

from dpo_core.contract.outcome import (
    EXACT_UNTIL,
    Draws,
    Outcome,
    accuracy_outcome,
    chance_of,
    measured_outcome,
    paired_outcome,
    sign_test,
    student,
    told_together,
)


def test_of_five_changes_all_for_the_better_chance_does_as_much_in_two_of_32_cases():
    assert sign_test(5, 0) == sign_test(0, 5) == pytest.approx(2 / 32)
    assert sign_test(6, 1) == pytest.approx(2 * (1 + 7) / 128)


def test_as_many_for_the_better_as_for_the_worse_is_no_change():
    assert sign_test(0, 0) == sign_test(3, 3) == sign_test(EXACT_UNTIL, EXACT_UNTIL) == 1


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
    assert both.chance == pytest.approx(student(0.1 / math.sqrt((0.24 + 0.21) / 100), 99))


def test_pairs_of_one_prompt_do_not_count_as_pairs_of_many():
    """64 of 80 pairs are rare (p < 0.001); of eight prompts whose ten pairs are all alike they are 6.4 won."""
    alone = accuracy_outcome("a", 0.5, 0.8, 80)
    assert accuracy_outcome("a", 0.5, 0.8, 80, Draws(0.0, 0.045, 80)) == alone
    assert alone.chance < 1e-6
    clustered = accuracy_outcome("a", 0.5, 0.8, 80, Draws(0.0, 0.15, 8))
    assert clustered.chance == pytest.approx(student(2.0, 7))
    assert not clustered.rose(0.05)
    unanimous = accuracy_outcome("a", 0.5, 1.0, 80, Draws(0.0, 0.0, 5))  # no spread at all, and five prompts
    assert unanimous.chance == pytest.approx(2 / 32)


def test_a_start_that_is_right_in_half_of_the_pairs_by_chance_is_a_measured_share():
    """Of an objective without a reference: 0.5 is no definition there."""
    found = accuracy_outcome("a", 0.5, 0.7, 100, Draws(0.05, 0.045, 100))
    assert found.chance == pytest.approx(student(0.2 / math.hypot(0.05, 0.045), 99))


def test_two_standard_errors_are_what_the_tables_say():
    assert measured_outcome("m", 1.0, 1.2, 0.1, 2000).chance == pytest.approx(0.0455, abs=1e-4)
    assert student(2.776, 4) == pytest.approx(0.05, abs=1e-4)
    assert student(2.042, 30) == pytest.approx(0.05, abs=1e-4)
    assert student(3.182, 3) == pytest.approx(0.05, abs=1e-4)
    assert student(1.0, 1) == pytest.approx(0.5)
    assert student(0.0, 7) == student(0.0, 8) == 1
    assert student(50.0, 999) == pytest.approx(0, abs=1e-12)


def test_few_draws_that_agree_are_not_sure_for_that():
    assert chance_of(1.0, 0.0, 4) == chance_of(1.0, 0.01, 4) == 2 / 16
    assert chance_of(0.75, 0.25, 4, num_moved=3) == 2 / 8
    assert chance_of(0.0, 0.0, 9) == chance_of(1.0, 0.1, 1) == 1
    assert chance_of(1.0, 0.0, 2000) == pytest.approx(0, abs=1e-200)


def test_the_surest_of_several_counts_as_often_as_there_are_figures():
    """Holm by hand: 4 x 0.01, 3 x 0.02, 2 x 0.025 below that, 1 x 0.3."""
    chances = (0.025, 0.3, 0.01, 0.02)
    told = told_together([Outcome(str(place), 0.5, 0.6, chance) for place, chance in enumerate(chances)])
    assert [one.counts for one in told] == pytest.approx([0.06, 0.3, 0.04, 0.06])
    assert [one.rose(0.05) for one in told] == [False, False, True, False]
    assert told[0].in_words == "0 0.50 to 0.60 (p = 0.025, 0.06 as one of 4 figures)"
    assert told[1].in_words == "1 0.50 to 0.60 (p = 0.3)"
    (alone,) = told_together(told[:1])
    assert alone == told[0]
    assert told_together(()) == ()


def test_it_is_said_in_words():
    assert accuracy_outcome("accuracy", 0.5, 0.85, 100).in_words == "accuracy 0.50 to 0.85 (p < 0.001)"
    assert accuracy_outcome("accuracy", 0.5, 0.75, 4).in_words == "accuracy 0.50 to 0.75 (p = 0.62)"
