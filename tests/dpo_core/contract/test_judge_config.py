"""The section ``judge``: what goes together, and what is no judge."""

import pytest
from pydantic import ValidationError

from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.judge_config import PLACES, QUESTION, JudgeConfig, why_not_judged

URL = "http://localhost:8000/v1"


def test_nobody_judges_unless_asked():
    assert not JudgeConfig().is_on
    assert why_not_judged(JudgeConfig(), EvaluationConfig(num_prompts=0), "0") is None


def test_the_question_holds_what_it_asks_about():
    assert [QUESTION.count(place) for place in PLACES] == [1, 1, 1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "org/rm"}, "judge.model means nothing with judge.kind none"),
        ({"kind": "reward_model"}, "judge.kind reward_model needs judge.model"),
        ({"kind": "reward_model", "model": "m", "endpoint": URL}, "judge.endpoint means nothing"),
        ({"kind": "endpoint", "model": "m"}, "needs judge.endpoint"),
        (
            {"kind": "endpoint", "model": "m", "endpoint": URL, "tie_band": 0.1},
            "judge.tie_band means nothing",
        ),
        ({"kind": "endpoint", "model": "m", "endpoint": "localhost:8000"}, "must be a URL"),
        ({"kind": "endpoint", "model": "m", "endpoint": "http://me:key@host/v1"}, "must hold no key"),
        ({"kind": "endpoint", "model": "m", "endpoint": f"{URL}?key=1"}, "must hold no key"),
        ({"kind": "endpoint", "model": "m", "endpoint": URL, "question": "A or B?"}, "must hold each of"),
        (
            {"kind": "endpoint", "model": "m", "endpoint": URL, "parameters": {"stream": True}},
            "judge.parameters cannot set stream",
        ),
    ],
)
def test_what_is_no_judge_is_refused_with_a_sentence(values: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        JudgeConfig(**values)


@pytest.mark.parametrize(("held_out", "num_prompts"), [("0", 8), ("10", 0)])
def test_a_judge_needs_answers(held_out: str, num_prompts: int):
    judge = JudgeConfig(kind="reward_model", model="m")
    assert "compares answers" in why_not_judged(judge, EvaluationConfig(num_prompts=num_prompts), held_out)


def test_a_slash_at_the_end_of_a_url_is_none():
    assert JudgeConfig(kind="endpoint", model="m", endpoint=f"{URL}/").endpoint == URL
