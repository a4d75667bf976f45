"""Signs that a policy gets worse: each at its bound and just below, and what was not measured."""

import pytest
from pydantic import ValidationError

from dpo_core.contract.metric_names import (
    ACCURACY,
    ACCURACY_ERROR,
    LENGTH_RULE,
    MOVED,
    OVER_LENGTH_RULE,
    OVER_LENGTH_RULE_ERROR,
    PROMPTS,
)
from dpo_core.contract.outcome import paired_outcome
from dpo_core.contract.warning_signs import (
    CHOSEN,
    CORRELATION,
    KL,
    TITLES,
    WORDS,
    WarningBounds,
    signs_of,
    why_not_measured,
)

BEFORE = {CHOSEN: -1.0, WORDS: 20.0}
GOOD = {
    CHOSEN: -1.4,
    WORDS: 29.0,
    KL: 0.4,
    CORRELATION: 0.4,
    LENGTH_RULE: 0.69,
    OVER_LENGTH_RULE: 0.0,
    OVER_LENGTH_RULE_ERROR: 0.04,
    PROMPTS: 100.0,
    ACCURACY: 0.56,
    ACCURACY_ERROR: 0.05,
    MOVED: 1.0,
}
WORSE = {
    "displacement": {CHOSEN: -1.5},
    "length": {WORDS: 30.0},
    "kl": {KL: 0.5},
    "length_correlation": {CORRELATION: -0.5},
    "shortening": {WORDS: 10.0},
    "no_signal": {ACCURACY: 0.55},
    "length_rule": {LENGTH_RULE: 0.7, OVER_LENGTH_RULE: 0.05, OVER_LENGTH_RULE_ERROR: 0.03},
}


def names(bounds: WarningBounds, after: dict, outcomes=()) -> list[str]:
    return [sign.name for sign in signs_of(bounds, BEFORE, after, outcomes)]


def test_below_every_bound_there_is_none():
    assert names(WarningBounds(), GOOD) == []


@pytest.mark.parametrize("name", WORSE)
def test_at_its_bound_there_is_one_with_its_figure_and_a_source(name):
    (sign,) = signs_of(WarningBounds(), BEFORE, GOOD | WORSE[name])
    assert sign.name == name
    assert abs(sign.value) == pytest.approx(sign.bound)
    assert f"{abs(sign.value):.2f}" in sign.words
    assert "arXiv" in sign.words


def test_a_fall_that_chance_does_not_explain_is_one():
    fell = paired_outcome("kept", [(True, False)] * 6 + [(True, True)] * 4)
    (sign,) = signs_of(WarningBounds(), BEFORE, GOOD, [fell])
    assert sign.name == "outcome"
    assert "kept 1.00 to 0.40 (p = 0.031)" in sign.words
    few = paired_outcome("kept", [(True, False)] * 5)
    rose = paired_outcome("kept", [(False, True)] * 9)
    assert names(WarningBounds(), GOOD, [few]) == names(WarningBounds(), GOOD, [rose]) == []


def test_what_was_not_measured_is_no_sign_and_neither_is_what_is_no_number():
    assert names(WarningBounds(), {}) == []
    assert names(WarningBounds(), dict.fromkeys(GOOD, float("nan"))) == []
    assert signs_of(WarningBounds(), {}, {CHOSEN: -9.0, WORDS: 99.0}) == ()


def test_an_empty_bound_switches_one_off():
    off = WarningBounds.model_validate(dict.fromkeys(WarningBounds.model_fields.keys() - {"stop"}))
    for worse in WORSE.values():
        assert names(off, GOOD | worse) == []


@pytest.mark.parametrize(
    "unlike",
    [
        {MOVED: 0.9},  # hardly trained
        {PROMPTS: 29.0},  # few
        {ACCURACY: 0.53, ACCURACY_ERROR: 0.005, PROMPTS: 10_000.0},  # little, but more than chance
    ],
)
def test_an_accuracy_of_one_half_is_a_sign_only_of_a_policy_that_moved_on_enough_prompts(unlike):
    assert names(WarningBounds(), GOOD | {ACCURACY: 0.5}) == ["no_signal"]
    assert names(WarningBounds(), GOOD | {ACCURACY: 0.5} | unlike) == []


def test_an_accuracy_above_that_of_length_is_no_sign_however_many_chosen_answers_are_longer():
    biased = GOOD | {LENGTH_RULE: 0.9, OVER_LENGTH_RULE_ERROR: 0.02}
    assert names(WarningBounds(), biased | {OVER_LENGTH_RULE: 0.06}) == []
    for above in (0.03, 0.0, -0.2):
        assert names(WarningBounds(), biased | {OVER_LENGTH_RULE: above}) == ["length_rule"]
    none_differs = {OVER_LENGTH_RULE: 0.0, OVER_LENGTH_RULE_ERROR: 0.0}  # every pair is as length has it
    assert names(WarningBounds(), biased | none_differs) == ["length_rule"]


@pytest.mark.parametrize("name", TITLES)
def test_each_can_stop_a_run_and_what_that_needs_is_said(name):
    bounds = WarningBounds(stop=(name,))
    assert why_not_measured(bounds, num_prompts=8, measures_kl=True) is None
    needs = "num_prompts" if name in ("length", "shortening", "outcome", "kl") else None
    assert (needs or "None") in str(why_not_measured(bounds, num_prompts=0, measures_kl=True))
    assert ("measure_kl" in str(why_not_measured(bounds, num_prompts=8, measures_kl=False))) == (name == "kl")


def test_one_without_a_bound_cannot_stop_anything():
    assert "bound" in str(why_not_measured(WarningBounds(kl_reaches=None, stop=("kl",)), 8, True))
    with pytest.raises(ValidationError):
        WarningBounds(stop=("nonsense",))
