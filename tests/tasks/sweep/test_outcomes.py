"""Who wins a sweep, and what its table and picture show."""

import io
import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dpo_core.contract.store import write_json
from flows.terminal.sweep import show_sweep_table
from tasks.gate.rules import GateCheck
from tasks.report.markdown import render_section
from tasks.report.sweep_section import lead_in_words, sweep_rows, sweep_section
from tasks.show import sweep_artifacts
from tasks.sweep.outcomes import SWEEP_FILE, MemberOutcome, SweepOutcome, judge, why_nobody_won, with_leads
from tasks.sweep.picture import axis_of, draw_sweep, lines_of
from tests.tasks.made_scores import benchmarks, task_scores

METRIC = "rewards/accuracies"
TASK = "benchmarks/gsm8k"
RIGHT = {1: 50, 2: 90, 3: 60, 4: 55}  # documents of 100; the second member fails the gate
NO = GateCheck(rule="KL to reference at most", value=0.2, bound=0.1, passed=False)


def member(
    number: int, value: float | None, error: str | None = None, passes: bool = True, **settings
) -> MemberOutcome:
    return MemberOutcome(
        number=number,
        label=f"member {number}",
        settings=settings or {"beta": float(number)},
        run=f"run-{number}",
        after={} if value is None else {METRIC: value},
        error=error,
        checks=() if passes else (NO,),
    )


def test_the_best_that_passes_wins():
    members = [
        member(1, 0.7),
        member(2, 0.9, passes=False),
        member(3, 0.8),
        member(4, None, error="oom: too large"),
        member(5, float("nan")),
        member(6, 0.8),
    ]
    outcome = judge(members, METRIC)
    assert outcome.winner == 3
    rows = sweep_rows(outcome)
    assert [row["outcome"] for row in rows] == [
        "trained",
        "gate: KL to reference at most 0.1: got 0.2",
        "winner",
        "failed: oom: too large",
        f"no {METRIC} was measured",
        "trained",
    ]
    assert [row["member"] for row in rows] == ["1", "2", "3 ★", "4", "5", "6"]
    assert rows[2][METRIC] == "0.8"


def scored() -> SweepOutcome:
    """Four members that are compared by a task, with what each of its documents gave."""
    members = []
    for number, right in RIGHT.items():
        found = benchmarks(gsm8k=(40, right))
        measured = {"after": found.metrics("after"), "errors": found.errors}
        members.append(member(number, None, passes=number != 2).model_copy(update=measured))
    by_member = {number: (task_scores("gsm8k", right),) for number, right in RIGHT.items()}
    return with_leads(judge(members, TASK), by_member)


def test_scores_of_tasks_have_their_errors_and_the_winner_s_lead_its_paired_one():
    """Of 100 documents the winner has five right that the second has not: d is 1 in five and 0 elsewhere, its mean 0.05 and
    the error sqrt(100 / 99 (5 * 0.95^2 + 95 * 0.05^2)) / 100."""
    outcome = scored()
    assert (outcome.winner, outcome.second) == (3, 4)
    assert {one.number: one.errors for one in outcome.members} == {number: {TASK: 0.05} for number in RIGHT}
    (lead,) = outcome.leads
    assert (lead.metric, lead.value, lead.stderr) == (
        TASK,
        pytest.approx(0.05),
        pytest.approx(0.0219043, rel=1e-5),
    )
    assert [row[TASK] for row in sweep_rows(outcome)] == [
        "0.5000 ± 0.0500",
        "0.9000 ± 0.0500",
        "0.6000 ± 0.0500",
        "0.5500 ± 0.0500",
    ]
    assert f"The winner, 3, less the second, 4: {TASK} +0.0500 ± 0.0219." in lead_in_words(outcome)


def test_report_terminal_and_artifact_tell_errors_and_lead(tmp_path, monkeypatch):
    outcome, told = scored(), {}
    section = render_section(sweep_section(SimpleNamespace(sweep=outcome)))
    write_json(tmp_path / SWEEP_FILE, outcome)
    console = Console(file=io.StringIO(), width=400)
    show_sweep_table(console, tmp_path)
    monkeypatch.setattr(
        sweep_artifacts, "table_artifact", lambda rows, key, text: told.update(rows=rows, text=text)
    )
    monkeypatch.setattr(sweep_artifacts, "markdown_artifact", lambda *_: None)
    monkeypatch.setattr(sweep_artifacts, "draw_sweep", lambda *_: tmp_path / SWEEP_FILE)
    sweep_artifacts.show_sweep(outcome, tmp_path, "dpo")
    artifact = f"{[row[TASK] for row in told['rows']]} {told['text']}"
    for shown in (section, console.file.getvalue(), artifact):
        assert all(f"0.{right}00 ± 0.0500" in shown for right in RIGHT.values())
        assert f"{TASK} +0.0500 ± 0.0219" in re.sub(r"\s+", " ", shown)


def test_a_lead_is_told_of_two_who_can_win_and_without_documents_it_has_no_error():
    assert judge([member(1, 0.9)], METRIC).second is None
    assert judge([member(1, 0.9), member(2, 0.8, passes=False)], METRIC).second is None
    outcome, nothing_kept = scored(), {3: (task_scores("gsm8k", 60),), 4: (task_scores("gsm8k", 55, of=99),)}
    (lead,) = with_leads(outcome, nothing_kept).leads
    assert lead.stderr is None
    assert with_leads(outcome, {}).leads == ()
    assert lead_in_words(judge([member(1, 0.9), member(2, 0.8)], METRIC)) == ""


def test_without_a_candidate_there_is_no_winner_and_each_reason_is_told():
    outcome = judge([member(1, 0.9, passes=False), member(2, None, error="data: bad row\ntrace")], METRIC)
    assert outcome.winner is None
    assert why_nobody_won(outcome) == (
        "member 1: gate: KL to reference at most 0.1: got 0.2; member 2: failed: data: bad row"
    )


def test_where_a_member_was_interrupted_nobody_wins_yet():
    interrupted = member(2, None, error="crashed: killed").model_copy(update={"interrupted": True})
    outcome = judge([member(1, 0.9), interrupted], METRIC)
    assert outcome.winner is None
    assert [row["outcome"] for row in sweep_rows(outcome)] == ["trained", "interrupted: crashed: killed"]


@given(
    st.lists(
        st.tuples(st.one_of(st.none(), st.floats(allow_nan=True)), st.booleans(), st.booleans()), min_size=1
    ),
    st.randoms(),
)
def test_no_candidate_is_better_than_the_winner_and_the_order_does_not_matter(members, random):
    made = [
        member(number, value, "failed: x" if fails else None, passes)
        for number, (value, fails, passes) in enumerate(members, start=1)
    ]
    outcome = judge(made, METRIC)
    scores = {one.number: one.score(METRIC) for one in made if one.score(METRIC) is not None}
    assert (outcome.winner is None) == (not scores)
    if scores:
        assert scores[outcome.winner] == max(scores.values())
        assert outcome.winner == min(
            number for number, score in scores.items() if score == max(scores.values())
        )
    random.shuffle(made)
    assert judge(made, METRIC) == outcome


@pytest.mark.parametrize(
    ("settings", "along", "lines"),
    [
        (
            [
                {"beta": 1.0, "seed": 1},
                {"beta": 2.0, "seed": 1},
                {"beta": 1.0, "seed": 2},
                {"beta": 2.0, "seed": 2},
            ],
            "beta",
            1,
        ),
        ([{"loss": "dpo", "beta": 1.0}, {"loss": "ipo", "beta": 1.0}], "loss", 1),
        (
            [{"loss": "dpo", "learning_rate": 1e-6}, {"loss": "ipo", "learning_rate": 1e-5}],
            "learning_rate",
            2,
        ),
        ([{"beta": 1.0}], "beta", 1),
    ],
)
def test_the_picture_is_drawn_along_what_varies(settings, along, lines, tmp_path):
    members = [
        member(number, number / 10, passes=number != 2, **one) for number, one in enumerate(settings, start=1)
    ]
    outcome = judge(members, METRIC)
    assert axis_of(outcome) == along
    found = lines_of(outcome, along)
    assert len(found) == lines
    assert sum(len(at) for line in found.values() for at in line.values()) == len(members)
    assert draw_sweep(outcome, tmp_path).read_bytes().startswith(b"\x89PNG")


def test_a_sweep_of_failures_has_a_picture_too(tmp_path):
    outcome = judge([member(1, None, error="oom: x"), member(2, None, error="oom: x")], METRIC)
    assert draw_sweep(outcome, tmp_path).stat().st_size > 1000
