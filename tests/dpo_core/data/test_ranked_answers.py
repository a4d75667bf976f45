"""Rows of several answers become pairs by the rule that is stated."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dpo_core.contract.drops import RowDropped
from dpo_core.contract.source_config import DataSource
from dpo_core.data.formats import to_pair
from dpo_core.data.ranked_answers import RankedAnswers, sides

SCORES = st.lists(st.integers(0, 5).map(float), min_size=2, max_size=6)
ANSWERS = [
    {"response": "A lake.", "overall_score": 3.5, "model": "a"},
    {"response": "The Baltic.", "overall_score": 9.0, "model": "b"},
    {"response": "No.", "overall_score": "1", "model": "c"},
]
COLUMNS = {"answers": "completions.response", "scores": "completions.overall_score"}


@settings(max_examples=60, deadline=None)
@given(SCORES, st.integers(0, 2**32), st.integers(0, 10**9))
def test_the_chosen_answer_is_the_better_one(scores, seed, number):
    if len(set(scores)) == 1:
        with pytest.raises(RowDropped, match="tied_answers"):
            sides(scores, "all", seed, number)
        return
    (best, worst), (same_best, drawn) = (
        *sides(scores, "best_worst", seed, number),
        *sides(scores, "best_random", seed, number),
    )
    assert scores[best] == max(scores)
    assert scores[worst] == min(scores)
    assert best == same_best == scores.index(max(scores))
    assert sides(scores, "best_random", seed, number) == [(best, drawn)]
    every = sides(scores, "all", seed, number)
    assert {(best, worst), (best, drawn)} <= set(every)
    assert every == [
        pair for pair in itertools.product(range(len(scores)), repeat=2) if scores[pair[0]] > scores[pair[1]]
    ]


def test_rows_and_seeds_draw_evenly_and_for_themselves():
    drawn = [[sides([1, 2, 3, 4], "best_random", seed, row)[0][1] for row in range(600)] for seed in (8, 9)]
    assert drawn[0] != drawn[1]
    assert all(150 < one.count(answer) < 250 for one in drawn for answer in range(3))


def rows(raw, rule, number=0, **columns):
    return RankedAnswers(rule, columns or COLUMNS, 8).rows(raw, number)


def said(raw, rule, **columns):
    pairs = [to_pair(row)[1] for row in rows(raw, rule, **columns)]
    return [(pair.chosen[-1]["content"], pair.rejected[-1]["content"]) for pair in pairs]


@pytest.mark.parametrize(
    "completions",
    [
        ANSWERS,
        # `datasets` before version 4 made an object of lists of it
        {name: [one[name] for one in ANSWERS] for name in ("response", "overall_score")},
        [one | {"response": [{"role": "assistant", "content": one["response"]}]} for one in ANSWERS],
    ],
)
def test_ultrafeedback_as_it_is_kept(completions):
    raw = {"instruction": "Name a sea.", "completions": completions, "chosen": "of another rule"}
    assert said(raw, "best_worst") == [("The Baltic.", "No.")]
    assert said(raw, "all") == [("A lake.", "No."), ("The Baltic.", "A lake."), ("The Baltic.", "No.")]


@pytest.mark.parametrize(
    ("answers", "scores"),
    [
        (["A lake.", "The Baltic.", "No."], "[3.5, 9, 1]"),
        ('["A lake.", "The Baltic.", "No."]', '["3.5", "9", "1"]'),
        (
            "['A lake.', 'The Baltic.', 'No.']",
            "(3.5, 9.0, 1)",
        ),  # a list in a table of text, in Python's spelling
        (["A lake.", "The Baltic.", "No."], " [3.5 9.\n 1. ]"),  # ... and numpy's
        (["A lake.", "The Baltic.", "No."], ["3.5", " 9 ", "1e0"]),
    ],
)
def test_lists_and_numbers_as_text_are_read(answers, scores):
    raw = {"prompt": "Name a sea.", "all": answers, "points": scores}
    assert said(raw, "best_worst", answers="all", scores="points") == [("The Baltic.", "No.")]


@pytest.mark.parametrize("written", [json.dumps, repr])
def test_objects_as_text_are_read(written):
    for completions in (written(ANSWERS), [written(one) for one in ANSWERS]):
        if written is repr and isinstance(completions, list):
            continue  # of one answer's object in Python's spelling nobody heard
        raw = {"prompt": "Name a sea.", "completions": completions}
        assert said(raw, "best_worst") == [("The Baltic.", "No.")]


def test_ranks_begin_with_the_best_and_a_column_with_a_dot_is_one():
    nectar = {"prompt": "Name a sea.", "all": ["A lake.", "The Baltic."], "their.rank": [2, 1]}
    assert said(nectar, "best_random", answers="all", ranks="their.rank") == [("The Baltic.", "A lake.")]


@pytest.mark.parametrize(
    ("completions", "reason"),
    [
        ([{"response": "a", "overall_score": 1}], "1 answers, expected 2"),
        ([], "0 answers"),
        (None, "is no list"),
        ("text", "is no list"),
        ([{"response": "a", "overall_score": 1}, {"response": "b"}], "'None' is no number"),
        ([{"response": "a", "overall_score": 1}, {"response": "b", "overall_score": "N/A"}], "'N/A' is no number"),
        ([{"response": "a", "overall_score": 1}, {"response": "b", "overall_score": float("nan")}], "is no number"),
        ([{"response": "a", "overall_score": 1}, {"response": "b", "overall_score": True}], "is no number"),
        ([{"response": "a", "overall_score": 10**400}, {"response": "b", "overall_score": 1}], "is no number"),
        ({"response": ["a", "b", "c"], "overall_score": [1, 2]}, "3 answers, 2 numbers"),
        ([{"response": str(i), "overall_score": i} for i in range(65)], "65 answers"),
        (["a", "b"], "is no number"),
        ({"response": ["a", "b"], "overall_score": "0.1, 0.9"}, "is no list"),  # may be 0.1 and 0.9, or 0, 1, 0, 9
        ({"response": ["a", "b"], "overall_score": ["0,1", "0,9"]}, "'0,1' is no number"),
        ({"response": ["a", "b"], "overall_score": "[0,1 0,9]"}, "is no list"),
        ({"response": ["a", "b"], "overall_score": ["4/5", "5/5"]}, "'4/5' is no number"),
        ({"response": "[a b]", "overall_score": [1, 2]}, "is no list"),
        ('[{"response": "a", "overall_score": 1}', "is no list"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_dropped_with_its_reason(completions, reason):
    with pytest.raises(RowDropped, match=reason) as raised:
        rows({"completions": completions}, "best_worst")
    assert raised.value.reason == "bad_answers"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"columns": COLUMNS}, "set pairs to best_worst"),
        ({"pairs": "all"}, "pairs needs columns"),
        ({"pairs": "all", "columns": {"answers": "a"}}, "pairs needs columns"),
        ({"pairs": "all", "columns": {**COLUMNS, "ranks": "r"}}, "pairs needs columns"),
        ({"pairs": "all", "columns": {**COLUMNS, "chosen": "c"}}, "names chosen beside answers"),
    ],
)
def test_a_rule_and_its_columns_belong_together(fields, message):
    with pytest.raises(ValidationError, match=message):
        DataSource(source="a.jsonl", **fields)
