"""Signs that are to stop a run keep its checkpoint from leaving."""

import pytest
from pydantic import ValidationError

from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.jobs import AnswerPair, EvaluateResult
from dpo_core.contract.warning_signs import WarningBounds
from tasks.gate.config import GateConfig
from tasks.gate.rules import failed_checks
from tasks.gate.signs import checks_of, outcomes_of, signs_in
from tests.tasks.made_scores import benchmarks
from tests.tasks.report.made_run import config_of

BEFORE = {"logps_per_token/chosen": -1.0, "answers/mean_words": 10.0}
AFTER = {"logps_per_token/chosen": -1.2, "answers/mean_words": 20.0, "rewards/accuracies": 0.9}


def result(before: dict, after: dict, judged: list[tuple[bool | None, bool | None]] = ()) -> EvaluateResult:
    answers = tuple(
        AnswerPair(prompt="p", before="b", after="a", before_passes=old, after_passes=new)
        for old, new in judged
    )
    return EvaluateResult(
        job_fingerprint="f" * 64,
        before=before,
        after=after,
        num_pairs=40,
        num_prompts=len(answers),
        answers=answers,
    )


def checks(stop: tuple[str, ...], found: EvaluateResult, **gate):
    return checks_of(GateConfig(**gate), EvaluationConfig(warnings=WarningBounds(stop=stop)), found)


def test_a_sign_that_only_warns_stops_nothing():
    found = result(BEFORE, AFTER)
    assert [sign.name for sign in signs_in(WarningBounds(), found)] == ["length"]
    assert checks((), found) == ()


def test_one_that_is_to_stop_is_a_check_beside_the_rules():
    length, displacement, accuracy = (
        "answers that grow",
        "likelihood displacement",
        "held-out accuracy at least",
    )
    found = checks(("length", "displacement"), result(BEFORE, AFTER), accuracy_at_least=0.8)
    assert {check.rule: check.passed for check in found} == {
        accuracy: True,
        f"no sign of {length}": False,
        f"no sign of {displacement}": True,
    }
    assert failed_checks(found) == f"no sign of {length} 1.5: got 2"


def test_what_was_not_measured_does_not_hold():
    (check,) = checks(("outcome",), result(BEFORE, AFTER, [(None, None)]))
    assert (check.passed, check.detail) == (False, "the evaluation did not measure it")


def test_only_answers_that_were_judged_on_both_sides_are_counted():
    (outcome,) = outcomes_of(result(BEFORE, AFTER, [(True, False)] * 6 + [(None, None)] * 9))
    assert (outcome.before, outcome.after) == (1.0, 0.0)
    (check,) = checks(("outcome",), result(BEFORE, AFTER, [(True, False)] * 6))
    assert not check.passed


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"data": {"sources": [{"source": "o/p"}], "held_out": 0}}, "data.held_out above 0"),
        (
            {"evaluation": {"num_prompts": 0, "warnings": {"stop": ["length"]}}},
            "evaluation.num_prompts above 0",
        ),
        ({"evaluation": {"warnings": {"stop": ["kl"]}}}, "evaluation.measure_kl"),
        (
            {"evaluation": {"warnings": {"stop": ["no_signal"]}}, "loss": {"name": "simpo"}},
            "an objective with a reference",
        ),
    ],
)
def test_a_recipe_whose_signs_cannot_be_measured_is_refused(tmp_path, sections, said):
    stop = {"evaluation": {"warnings": {"stop": ["displacement"]}}}
    with pytest.raises(ValidationError, match=said):
        config_of(tmp_path, **(stop | sections))


def test_a_task_that_falls_is_a_sign_although_accuracy_rises():
    found, fallen = result(BEFORE, AFTER | {"answers/mean_words": 10.0}), benchmarks(gsm8k=(60, 40))
    assert signs_in(WarningBounds(), found) == ()
    (sign,) = signs_in(WarningBounds(), found, fallen)
    assert sign.name == "outcome"
    assert "gsm8k exact_match (strict-match) 0.60 to 0.40" in sign.words
    stop = EvaluationConfig(warnings=WarningBounds(stop=("outcome",)))
    (check,) = checks_of(GateConfig(), stop, found, fallen)
    assert not check.passed


def test_one_task_of_several_that_falls_a_little_is_what_chance_does():
    """Six of a hundred documents lost are p = 0.031 alone, and one such task in twenty is no sign of anything."""
    found = result(BEFORE, AFTER | {"answers/mean_words": 10.0})
    assert [sign.name for sign in signs_in(WarningBounds(), found, benchmarks(a=(50, 44)))] == ["outcome"]
    unmoved = {name: (50, 50) for name in "bcdef"}
    assert signs_in(WarningBounds(), found, benchmarks(a=(50, 44), **unmoved)) == ()
    (sign,) = signs_in(WarningBounds(), found, benchmarks(a=(50, 30), **unmoved))
    assert "a exact_match (strict-match) 0.50 to 0.30" in sign.words


def test_answers_to_the_prompts_of_a_named_set_are_counted_by_themselves():
    kept = AnswerPair(prompt="p", before="b", after="a", before_passes=True, after_passes=False)
    found = result(BEFORE, AFTER, [(True, True)] * 4).model_copy(
        update={"set_answers": {"safety": (kept,) * 9}}
    )
    own, safety = outcomes_of(found)
    assert (own.label, safety.label) == ("instructions kept", "safety: instructions kept")
    assert (own.change, safety.change) == (0.0, -1.0)
    assert "outcome" in {sign.name for sign in signs_in(WarningBounds(), found)}
