"""Scores set against divergence: which members are the best trades, and how a sweep's page shows them."""

import math

from hypothesis import given
from hypothesis import strategies as st

from dpo_core.contract.store import write_json
from tasks.gate.rules import GateCheck
from tasks.report.page import report_page, write_report
from tasks.report.sweep_section import MEASURE_IT, sweep_rows
from tasks.run.files import read_run_files
from tasks.sweep.outcomes import SWEEP_FILE, MemberOutcome, SweepOutcome, judge
from tasks.sweep.trade_off import KL, traded_metrics, trades_of
from tests.tasks.report.made_run import make_run

METRIC, TASK = "rewards/accuracies", "benchmarks/gsm8k"
FAILED = GateCheck(rule="KL", value=1.0, bound=0.5, passed=False)
NUMBERS = st.floats(-10, 10)


def swept(*members: tuple[float | None, float, bool]) -> SweepOutcome:
    """Of (divergence, score, passes the gate)."""
    made = [
        MemberOutcome(
            number=number,
            label=f"beta {number}",
            settings={"beta": float(number)},
            run="",
            before={METRIC: 0.5},
            after={METRIC: score} if kl is None else {METRIC: score, KL: kl},
            checks=() if passes else (FAILED,),
        )
        for number, (kl, score, passes) in enumerate(members, start=1)
    ]
    return judge(made, METRIC)


def best(outcome: SweepOutcome) -> list[int]:
    return [trade.member.number for trade in trades_of(outcome, METRIC) if trade.is_best]


def test_the_front_by_hand():
    # 1 is cheapest, 3 the best; 2 costs more than 1 and has less; 4 costs more than 3 and has as much.
    outcome = swept((0.1, 0.6, True), (0.2, 0.55, True), (0.3, 0.8, True), (0.4, 0.8, True))
    assert best(outcome) == [1, 3]
    assert [row["member"] for row in sweep_rows(outcome)] == ["1 ◆", "2", "3 ★ ◆", "4"]


def test_who_fails_the_gate_is_no_best_trade_and_hides_none():
    outcome = swept((0.1, 0.9, False), (0.2, 0.6, True), (0.3, 0.7, True))
    assert best(outcome) == [2, 3]
    assert [trade.can_win for trade in trades_of(outcome, METRIC)] == [False, True, True]


def test_twins_are_both_best():
    assert best(swept((0.1, 0.6, True), (0.1, 0.6, True))) == [1, 2]


def test_without_two_that_were_measured_there_is_nothing_to_set_against():
    assert trades_of(swept((None, 0.9, True), (0.2, 0.6, True), (math.nan, 0.7, True)), METRIC) == ()
    assert traded_metrics(swept((None, 0.9, True))) == ()


@given(st.lists(st.tuples(NUMBERS, NUMBERS, st.booleans()), min_size=2, max_size=12))
def test_nobody_on_the_front_is_beaten_and_everybody_else_is(members):
    trades = trades_of(swept(*members), METRIC)
    able = [trade for trade in trades if trade.can_win]
    for trade in able:
        beaten = any(
            (other.kl <= trade.kl and other.score > trade.score)
            or (other.kl < trade.kl and other.score >= trade.score)
            for other in able
        )
        assert trade.is_best != beaten
    assert any(trade.is_best for trade in trades) == bool(able)


def test_the_report_of_a_sweep_shows_members_and_a_chart_a_metric(tmp_path):
    folder = make_run(tmp_path, steps=4)
    outcome = swept((0.1, 0.6, True), (0.2, 0.7, True), (0.3, 0.8, False))
    scored = tuple(
        member.model_copy(update={"after": member.after | {TASK: 0.1 * member.number}})
        for member in outcome.members
    )
    write_json(folder / SWEEP_FILE, outcome.model_copy(update={"members": scored}))
    assert traded_metrics(outcome) == (METRIC,)
    page = write_report(folder)
    section = next(section for section in page.sections if section.anchor == "members")
    assert [row[TASK] for row in sweep_rows(outcome.model_copy(update={"members": scored}))] == [
        "0.1",
        "0.2",
        "0.3",
    ]
    assert TASK not in sweep_rows(outcome)[0]
    written = (folder / "report.html").read_text()
    assert "reward accuracy for divergence" in written
    assert "benchmarks/gsm8k for divergence" in written
    assert "1: 0.6 for 0.1 (best); 2 ★: 0.7 for 0.2 (best); 3: 0.8 for 0.3 (not passed)" in written
    assert len(section.blocks) == 3


def test_a_sweep_that_measured_no_divergence_says_how_to(tmp_path):
    folder = make_run(tmp_path, steps=4)
    write_json(folder / SWEEP_FILE, swept((None, 0.6, True), (None, 0.7, True)))
    report_page(read_run_files(folder))
    write_report(folder)
    assert MEASURE_IT in (folder / "report.html").read_text()
