"""What a judge found, on the pages that people read."""

from pathlib import Path

from dpo_core.contract.judge_config import QUESTION
from dpo_core.contract.judge_job import EndpointJudge, JudgeJob, JudgeResult, content_of_answers
from dpo_core.contract.judgement import JudgeFigures, Opinion
from dpo_core.contract.refs import CheckpointRef
from tasks.launch.run_job import in_store
from tasks.publish.model_card import CardInputs, render_card
from tasks.report.compare import compare_page
from tasks.report.html import render_html
from tasks.report.judgement import judgement_section
from tasks.report.page import report_page
from tasks.report.verdict import verdict_of_run
from tasks.run.files import RunFiles, read_run_files
from tasks.run.folder import recorded_run
from tasks.text.judgement import how_it_judged, judgement_rows
from tests.tasks.made_judgement import judgement
from tests.tasks.report.made_run import config_of, finish, make_run

PRICED = {
    "kind": "endpoint",
    "model": "judge-7b",
    "endpoint": "http://localhost:8000/v1",
    "price_in": 2.0,
    "price_out": 10.0,
}


def judged_run(
    store: Path,
    figures: JudgeFigures | None,
    opinions: tuple[Opinion, ...] = (),
    content: str = "a",
    **sections: object,
) -> RunFiles:
    """A whole run, and a second one of the same steps with a judge."""
    whole = read_run_files(make_run(store))
    if figures is None:
        return whole
    judge = EndpointJudge(url="http://localhost:8000/v1", model=figures.model, question=QUESTION)
    job = in_store(
        JudgeJob(judge=judge, answers_file=store / "r.json", answers_content=content, cache_dir=store / "w"),
        store,
    )
    with recorded_run(store, "demo", config_of(store, **sections), "flow-run-id") as run:
        run.result("evaluate", whole.evaluation)
        with run.task("judge"):
            result = finish(
                run,
                job,
                JudgeResult,
                judgement=figures,
                opinions=opinions,
                asked=3,
                verdicts=job.out_dir / "verdicts",
            )
            run.result("judge", result)
    return read_run_files(run.folder)


def test_samples_are_chosen_by_what_the_judge_thought_of_these_very_answers(tmp_path):
    answers = read_run_files(make_run(tmp_path / "a")).evaluation.answers
    (opinion,) = opinions = (Opinion(preference=0.25),)
    run = judged_run(tmp_path / "b", judgement(), opinions, content_of_answers(answers))
    assert run.preferences == (0.25,)
    assert "Elsewhere what the judge likes less" in render_html(report_page(run))
    for store, other, content in (
        ("c", opinions, "a"),
        ("d", (opinion, opinion), content_of_answers(answers)),
    ):
        run = judged_run(tmp_path / store, judgement(), other, content)
        assert run.preferences == ()
        assert "the judge likes" not in render_html(report_page(run))


def test_rows_tell_rates_ties_agreement_tokens_and_cost():
    rows = {row["figure"]: row["value"] for row in judgement_rows(judgement(), 2.0, 10.0)}
    assert rows == {
        "win rate": "0.7750 ± 0.0500",
        "win rate, length-controlled": "0.6000 ± 0.0600",
        "won, tied, lost": "30, 2, 8",
        "characters an answer": "412 → 530",
        "same verdict in both orders": "82%",
        "verdicts for the first answer": "54%",
        "tokens, in and out": "40,000, 8,000",
        "cost": "0.16",
    }
    assert "cost" not in {row["figure"] for row in judgement_rows(judgement())}


def test_rows_of_a_reward_model_have_no_orders_and_no_tokens():
    figures = judgement(
        kind="reward_model",
        agreement=None,
        first_chosen=None,
        prompt_tokens=0,
        completion_tokens=0,
        length_controlled=None,
        length_controlled_stderr=None,
        cut=3,
    )
    rows = {row["figure"]: row["value"] for row in judgement_rows(figures, 2.0, 10.0)}
    assert rows["win rate, length-controlled"] == "-"
    assert rows["answers whose prompt was cut"] == "3"
    assert set(rows) == {
        "win rate",
        "win rate, length-controlled",
        "won, tied, lost",
        "characters an answer",
        "answers whose prompt was cut",
    }
    assert "sigmoid" in how_it_judged(figures)


def test_report_verdict_and_comparison_tell_it(tmp_path):
    run = judged_run(tmp_path / "a", judgement(length_controlled=0.7), judge=PRICED)
    page = render_html(report_page(run))
    assert "0.7750 ± 0.0500" in page
    assert "judge-7b compared the answers to each prompt in both orders" in page
    assert ">0.16<" in page  # by the prices of the run's recipe
    verdict = verdict_of_run(run)
    assert verdict.answer == "Better"
    assert "answers that win, 0.70 ± 0.06 of equal length, 0.50 to 0.78 (p = 0.0019, " in verdict.because
    worse = judged_run(tmp_path / "b", judgement(wins=5, ties=0, losses=35), judge=PRICED)
    assert verdict_of_run(worse).in_words.startswith("Worse: answers that win 0.50 to 0.12")
    assert [sign.name for sign in verdict_of_run(worse).signs] == ["outcome"]
    compared = render_html(compare_page([run, worse]))
    assert "30, 2, 8" in compared
    assert "5, 0, 35" in compared


def test_a_run_without_a_judge_has_no_such_section(tmp_path):
    run = judged_run(tmp_path, None)
    assert run.judgement is None
    assert judgement_section(run) is None
    assert "Judge" not in [section.title for section in compare_page([run, run]).sections]


def test_the_model_card_tells_it_and_escapes_its_name():
    parent = CheckpointRef(path="/m", fingerprint="f" * 64, tokenizer_fingerprint="f" * 64, source="org/sft")
    card = render_card(CardInputs(name="demo", parent=parent, judgement=judgement(model="<b>judge</b>")))
    assert "## Judge" in card
    assert "| win rate | 0.7750 ± 0.0500 |" in card.replace("\\", "")
    assert "<b>" not in card
    assert "cost" not in card
