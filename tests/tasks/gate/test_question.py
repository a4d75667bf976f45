"""What a person sees who is asked: everything to decide by, and nothing that a prompt could smuggle in."""

import re

from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.jobs import AnswerPair, EvaluateResult
from tasks.gate.rules import GateCheck
from tasks.report.question import NUM_CHARACTERS, Judged, question_markdown
from tasks.report.samples import as_samples
from tasks.report.tables import samples_markdown

CHECK = GateCheck(rule="held-out accuracy at least", value=0.85, bound=0.7, passed=True)


def question(ui_url: str | None = None, **answer: object) -> str:
    shown = AnswerPair(
        **{"prompt": "p", "before": "b", "after": "a", "before_passes": None, "after_passes": None} | answer
    )
    result = EvaluateResult(
        job_fingerprint="x",
        before={"rewards/accuracies": 0.5},
        after={"rewards/accuracies": 0.85},
        num_pairs=40,
        num_prompts=2,
        answers=(shown, shown),
    )
    return question_markdown(
        "mine", "/export/1", [CHECK], Judged(result), EvaluationConfig(num_samples_shown=1), ui_url
    )


def test_rules_numbers_samples_and_where_the_checkpoint_is():
    text = question(before_passes=False, after_passes=True)
    for part in (
        "Release mine?",
        "`/export/1`",
        "Better: held-out reward accuracy 0.50 to 0.85",
        "| held-out accuracy at least | 0.85 | 0.7 | yes |",
        "| rewards/accuracies | 0.5 | 0.85 | +0.35 |",
        "- before ✗: b",
        "- after ✓: a",
    ):
        assert part in text
    assert text.count("- after") == 1  # one sample was asked for


def test_the_samples_are_those_that_the_report_chooses_also_by_a_judge():
    answers = tuple(AnswerPair(prompt=f"p{number}", before="b", after="a") for number in range(9))
    result = EvaluateResult(
        job_fingerprint="x", before={}, after={}, num_pairs=0, num_prompts=9, answers=answers
    )
    preferences = (0.5, 0.5, 0.9, 0.5, 0.5, 0.5, 0.1, 0.5, 0.5)
    chosen = [sample.prompt for sample in as_samples(answers, 2, preferences) if sample.is_telling]
    assert chosen == ["p6", "p2"]  # liked least, liked best
    settings = EvaluationConfig(num_samples_shown=2)
    judged = Judged(result, preferences=preferences)
    asked = question_markdown("mine", "/export/1", [], judged, settings, None)
    shown = samples_markdown(result, 2, preferences)
    for text in (asked, shown):
        assert re.findall(r"\bp\d\b", text) == chosen


def test_links_go_to_the_run_family_s_artifacts_where_there_are_pages():
    assert "(http://here/artifacts/key/mine-report)" in question("http://here")
    assert "artifacts/key" not in question()


def test_an_answer_cannot_act_and_is_cut():
    text = question(after="<script>![x](http://evil)" + "y" * 1000)
    assert "<script>" not in text
    assert "![x]" not in text
    assert "y" * NUM_CHARACTERS not in text
