"""Who wins a sweep, and what its table and picture show."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.gate.rules import GateCheck
from tasks.report.sweep_section import sweep_rows
from tasks.sweep.outcomes import MemberOutcome, judge, why_nobody_won
from tasks.sweep.picture import axis_of, draw_sweep, lines_of

METRIC = "rewards/accuracies"
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
