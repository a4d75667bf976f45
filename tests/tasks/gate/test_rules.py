"""The gate's rules: what passes, what fails and why, whatever the numbers are."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dpo_core.contract.benchmarks import Benchmarks, compared
from dpo_core.contract.evaluation_config import EvaluationConfig
from tasks.gate.config import GateConfig, why_unmeasurable
from tasks.gate.rules import (
    check_benchmarks,
    check_judgement,
    check_rules,
    check_sets,
    check_table,
    failed_checks,
)
from tests.tasks.made_judgement import judgement
from tests.tasks.made_scores import benchmarks, task_scores
from tests.tasks.report.made_run import config_of

BEFORE = {"rewards/accuracies": 0.5, "answers/mean_words": 20.0, "checker/pass_rate": 0.3}
AFTER = {
    "rewards/accuracies": 0.8,
    "answers/mean_words": 30.0,
    "checker/pass_rate": 0.3,
    "kl/per_token": 0.02,
}
ALL = {
    "accuracy_at_least": 0.75,
    "length_ratio_at_most": 1.5,
    "kl_at_most": 0.05,
    "checker_not_below_sft": True,
}


def test_without_rules_nothing_is_checked():
    rules = {
        **ALL,
        "sets": {"safety": {"accuracy_at_least": 0.6}},
        "judge": {"win_rate_at_least": 0.5},
        "benchmarks": {"gsm8k": {"not_below_sft_by": 0.01}},
    }
    assert set(rules) == set(GateConfig.model_fields) - {"approval", "wait", "timeout_seconds"}
    assert check_rules(GateConfig(), BEFORE, AFTER) == ()
    assert not GateConfig().has_rules
    assert all(GateConfig(**{name: value}).has_rules for name, value in rules.items())


def test_every_rule_tells_value_and_bound():
    checks = check_rules(GateConfig(**ALL), BEFORE, AFTER)
    assert [(check.value, check.bound, check.passed) for check in checks] == [
        (0.8, 0.75, True),
        (1.5, 1.5, True),
        (0.02, 0.05, True),
        (0.3, 0.3, True),
    ]
    assert failed_checks(checks) == ""


@pytest.mark.parametrize(
    ("rule", "metric", "value"),
    [
        ("accuracy_at_least", "rewards/accuracies", 0.7499),
        ("length_ratio_at_most", "answers/mean_words", 30.1),
        ("kl_at_most", "kl/per_token", 0.0501),
        ("checker_not_below_sft", "checker/pass_rate", 0.2999),
    ],
)
def test_each_rule_fails_by_itself_and_says_by_how_much(rule, metric, value):
    checks = check_rules(GateConfig(**ALL), BEFORE, AFTER | {metric: value})
    (failed,) = [check for check in checks if not check.passed]
    assert check_rules(GateConfig(**{rule: ALL[rule]}), BEFORE, AFTER | {metric: value}) == (failed,)
    assert failed_checks(checks) == f"{failed.rule} {failed.bound:.4g}: got {failed.value:.4g}"
    assert [row["passed"] for row in check_table(checks)].count("NO") == 1


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("accuracy_at_least", "measured no rewards/accuracies"),
        ("length_ratio_at_most", "measured no answers/mean_words"),
        ("kl_at_most", "measured no kl/per_token"),
        ("checker_not_below_sft", "no held-out prompt that was answered has constraints"),
    ],
)
def test_what_was_not_measured_fails_with_a_reason(rule, reason):
    (check,) = check_rules(GateConfig(**{rule: ALL[rule]}), {}, {})
    assert not check.passed
    assert check.value is None
    assert reason in failed_checks([check])


def test_empty_answers_of_the_sft_checkpoint_are_no_measure():
    (check,) = check_rules(
        GateConfig(length_ratio_at_most=2.0), {"answers/mean_words": 0.0}, {"answers/mean_words": 3.0}
    )
    assert (check.passed, check.value) == (False, None)
    assert "the SFT checkpoint's answers are empty" in check.detail


NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


@given(
    after=st.fixed_dictionaries({}, optional=dict.fromkeys(AFTER, NUMBERS)),
    before=st.fixed_dictionaries({}, optional=dict.fromkeys(BEFORE, NUMBERS)),
)
def test_what_passes_is_a_number_within_its_bound(before, after):
    """Nothing that is missing or NaN passes, and no rule is left out."""
    checks = check_rules(GateConfig(**ALL), before, after)
    assert len(checks) == len(ALL)
    for check in checks:
        within = (
            check.value is not None
            and check.bound is not None
            and (check.value <= check.bound if check.rule.endswith("most") else check.value >= check.bound)
        )
        assert check.passed == within
        assert check.passed or (check.detail or not math.isnan(check.value))
    assert (failed_checks(checks) == "") == all(check.passed for check in checks)


@given(value=st.floats(0, 1), better=st.floats(0, 1), bound=st.floats(0, 1))
def test_a_better_accuracy_never_turns_a_pass_into_a_fail(value, better, bound):
    gate = GateConfig(accuracy_at_least=bound)
    worse, best = (
        check_rules(gate, {}, {"rewards/accuracies": number})[0].passed for number in sorted((value, better))
    )
    assert best or not worse


@pytest.mark.parametrize(
    ("gate", "evaluation", "held_out", "reason"),
    [
        ({"accuracy_at_least": 0.6}, {}, "0", "set data.held_out above 0"),
        ({"length_ratio_at_most": 2}, {"num_prompts": 0}, "8", "set evaluation.num_prompts above 0"),
        ({"kl_at_most": 2}, {}, "8", "needs evaluation.measure_kl"),
        ({"kl_at_most": 2}, {"measure_kl": True}, "0.05", None),
        ({"accuracy_at_least": 0.6}, {"num_prompts": 0}, "8", None),
        ({}, {"num_prompts": 0}, "0", None),
    ],
)
def test_a_rule_that_nothing_would_measure_is_refused_before_the_run(gate, evaluation, held_out, reason):
    found = why_unmeasurable(GateConfig(**gate), EvaluationConfig(**evaluation), held_out)
    assert found is None if reason is None else reason in found


def of(name: str, metrics: dict[str, float]) -> dict[str, float]:
    return {f"held_out/{name}/{metric}": value for metric, value in metrics.items()}


def test_rules_of_a_set_judge_its_figures_and_no_others():
    gate = GateConfig(sets={"safety": ALL, "maths": {"accuracy_at_least": 0.9}})
    before = BEFORE | of("safety", BEFORE)
    after = AFTER | of("safety", AFTER | {"answers/mean_words": 31.0}) | of("maths", {"loss": 0.1})
    checks = check_sets(gate, before, after)
    assert [(check.rule, check.value, check.passed) for check in checks] == [
        ("safety: held-out accuracy at least", 0.8, True),
        ("safety: mean length ratio at most", 1.55, False),
        ("safety: KL to reference at most", 0.02, True),
        ("safety: checker pass rate not below SFT", 0.3, True),
        ("maths: held-out accuracy at least", None, False),
    ]
    assert "measured no rewards/accuracies" in checks[-1].detail


def test_rules_of_a_set_need_the_set_and_what_they_are_measured_on():
    safety = EvaluationConfig(sets=[{"name": "safety", "source": "safety.jsonl"}], num_prompts=0)
    by_accuracy = GateConfig(sets={"safety": {"accuracy_at_least": 0.6}})
    assert why_unmeasurable(by_accuracy, safety, "0") is None
    assert "evaluation.sets does not name; add it there" in why_unmeasurable(
        by_accuracy, EvaluationConfig(), "0.1"
    )
    by_length = GateConfig(sets={"safety": {"length_ratio_at_most": 2}})
    assert "set evaluation.num_prompts above 0" in why_unmeasurable(by_length, safety, "0.1")
    with pytest.raises(ValidationError, match=r"rules of gate\.sets need accuracy_at_least"):
        GateConfig(sets={"safety": {}})


def test_suspending_without_a_person_is_refused():
    with pytest.raises(ValidationError, match=r"means nothing without gate\.approval person"):
        GateConfig(wait="suspend")


def task_checks(found, **rules: dict):
    return check_benchmarks(GateConfig(benchmarks=rules), found)


@pytest.mark.parametrize(
    ("rule", "after", "passes"),
    [
        ({"not_below_sft_by": 0.01}, 29, True),
        ({"not_below_sft_by": 0.01}, 28, False),
        ({"not_below_sft_by": 0}, 30, True),
        ({"at_least": 0.3}, 30, True),
        ({"at_least": 0.3}, 29, False),
    ],
)
def test_a_task_may_fall_by_its_bound_and_no_more(rule, after, passes):
    (check,) = task_checks(benchmarks(gsm8k=(30, after)), gsm8k=rule)
    assert check.passed == passes
    assert check.rule.startswith("gsm8k exact_match (strict-match)")
    says_how_sure = re.fullmatch(r"± 0\.\d{4}, p = 1|± 0\.\d{4}, p = 0\.\d+", check.detail) is not None
    assert says_how_sure == ("not_below_sft_by" in rule)
    assert passes or check.detail in failed_checks((check,))


def test_where_less_is_better_more_is_the_fall():
    before, after = task_scores("text", 30, better=-1), task_scores("text", 32, better=-1)
    found = Benchmarks(lm_eval="0.4.13", scores=compared((before,), (after,)))
    (check,) = task_checks(found, text={"not_below_sft_by": 0.01})
    assert (check.value, check.passed) == (pytest.approx(-0.02), False)


def test_a_task_that_was_not_scored_does_not_hold():
    found = benchmarks(gsm8k=(30, 40))
    for scores, rule in ((None, {}), (found, {"metric": "exact_match,flexible-extract"})):
        (check,) = task_checks(scores, gsm8k={"at_least": 0.1, **rule})
        assert (check.value, check.passed) == (None, False)
        assert "measured no gsm8k" in check.detail
    first, second = task_checks(found, gsm8k={"at_least": 0.1, "not_below_sft_by": 0.0})
    assert first.passed
    assert second.passed


def test_a_rule_of_a_task_that_is_not_asked_for_is_refused_before_the_run():
    gate = GateConfig(benchmarks={"gsm8k": {"at_least": 0.1}})
    assert gate.has_rules
    assert why_unmeasurable(gate, EvaluationConfig(), "0", ("ifeval",)).startswith(
        "gate.benchmarks has a rule for gsm8k"
    )
    assert why_unmeasurable(gate, EvaluationConfig(), "0", ("gsm8k",)) is None
    with pytest.raises(ValidationError, match="needs not_below_sft_by or at_least"):
        GateConfig(benchmarks={"gsm8k": {}})
    with pytest.raises(ValidationError, match=r"which benchmarks\.tasks does not name"):
        config_of("store", gate={"benchmarks": {"gsm8k": {"at_least": 0.1}}})


def test_what_a_judge_must_find_holds_at_its_bound():
    gate = GateConfig(judge={"win_rate_at_least": 0.775, "length_controlled_at_least": 0.61})
    won, controlled = check_judgement(gate, judgement())
    assert (won.value, won.passed) == (0.775, True)
    assert failed_checks((won, controlled)) == "length-controlled win rate at least 0.61: got 0.6"
    assert check_judgement(GateConfig(), judgement()) == ()


def test_what_no_judge_found_does_not_hold():
    gate = GateConfig(judge={"length_controlled_at_least": 0.1})
    (unasked,) = check_judgement(gate, None)
    assert (unasked.passed, unasked.detail) == (False, "nobody judged")
    (unknown,) = check_judgement(gate, judgement(length_controlled=None, length_controlled_stderr=None))
    assert (unknown.passed, unknown.value) == (False, None)


def test_a_rule_for_a_judge_needs_one_and_a_bound(tmp_path):
    with pytest.raises(ValidationError, match=r"gate\.judge needs somebody who judges"):
        config_of(tmp_path, gate={"judge": {"win_rate_at_least": 0.5}})
    with pytest.raises(ValidationError, match=r"gate\.judge needs win_rate_at_least or"):
        GateConfig(judge={})
    judged = {"kind": "reward_model", "model": "org/rm"}
    assert config_of(tmp_path, judge=judged, gate={"judge": {"win_rate_at_least": 0.5}}).gate.has_rules
