"""Overlap with evaluation instances: shares worked out by hand, and as by looking for each run in the text."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_core.contract.quality_config import QualityRules
from dpo_core.contract.refs import ResolvedEvaluationSet
from dpo_core.data.contamination import EvaluationIndex
from dpo_core.data.evaluation_sets import EvaluationSets
from dpo_core.data.pairs import PreferencePair

A_TO_J = "a b c d e f g h i j"


def row(*turns: str) -> PreferencePair:
    prompt = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    sides = ([*prompt, {"role": "assistant", "content": text}] for text in ("yes", "no"))
    return PreferencePair(prompt, *sides)


def test_a_word_matches_where_a_run_around_it_stands_in_the_turn():
    index = EvaluationIndex([[A_TO_J]], n=8, bound=0.5)
    assert index.overlaps(row("x a b c d e f g h y")).share == pytest.approx(0.8)  # one run: 8 of 10 words
    assert index.overlaps(row("a b c d e f g h i, x")).share == pytest.approx(0.9)  # two runs
    assert index.overlaps(row("a b c d e f g x h i j")).share == 0  # none
    assert index.overlaps(row("A B, c d (e) f g h i j!")).instances == [0]  # case and punctuation aside


def test_more_than_the_bound_is_an_overlap():
    index = EvaluationIndex([[" ".join("abcdefghijklmnop")]], n=8, bound=0.5)
    half = index.overlaps(row("a b c d e f g h"))
    assert (half.share, half.instances) == (0.5, [])
    assert index.overlaps(row("a b c d e f g h i")).instances == [0]


def test_users_turns_are_looked_at_one_by_one():
    index = EvaluationIndex([[A_TO_J]], n=4, bound=0.5)
    assert index.overlaps(row("a b c d", A_TO_J, "e f g h")).instances == []  # the answer is not looked at
    assert index.overlaps(row("hello", "hi", A_TO_J)).instances == [0]


def test_of_several_fields_the_mean_counts():
    index = EvaluationIndex([[A_TO_J, "k l m n o"]], n=5, bound=0.5)
    assert index.overlaps(row(A_TO_J)).share == pytest.approx(0.5)
    assert index.overlaps(row(A_TO_J + " and k l m n o")).share == pytest.approx(1.0)


def test_instances_come_most_first_and_short_ones_match_nothing():
    index = EvaluationIndex([["too short"], ["a b c d x y"], [A_TO_J], []], n=4, bound=0.5)
    assert index.too_short == [0, 3]
    overlaps = index.overlaps(row(A_TO_J + " too short"))
    assert (overlaps.instances, overlaps.share) == ([2, 1], 1.0)


TEXTS = st.lists(st.sampled_from("abc"), max_size=14).map(" ".join)


@given(st.lists(st.lists(TEXTS, min_size=1, max_size=2), max_size=4), TEXTS, st.integers(1, 4))
def test_the_index_finds_what_looking_for_each_run_finds(instances, text, n):
    there = {tuple(text.split()[i : i + n]) for i in range(len(text.split()) - n + 1)}
    shares = []
    for fields in instances:
        share = 0.0
        for field in fields:
            words = field.split()
            matched = {
                i + k for i in range(len(words) - n + 1) if tuple(words[i : i + n]) in there for k in range(n)
            }
            share += len(matched) / max(1, len(words)) / len(fields)
        shares.append(share)
    overlaps = EvaluationIndex(instances, n, bound=0.4).overlaps(row(text))
    assert overlaps.share == pytest.approx(max(shares, default=0.0))
    assert sorted(overlaps.instances) == [i for i, share in enumerate(shares) if share > 0.4]


def test_a_column_that_only_looks_like_messages_is_compared_as_text(tmp_path):
    """Choices of a quiz, a question with a picture: no instance of an evaluation set ends the mixture."""
    rows = [
        {"choices": {"text": [{"label": "A"}], "label": ["A"]}},
        {"choices": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": A_TO_J}]}]},
        {"choices": {"text": ["put a stone", "dig"], "label": ["A", "B"]}},
    ]
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    quiz = ResolvedEvaluationSet(label="quiz", path=tmp_path / "quiz.jsonl", content="c", fields=("choices",))
    index = EvaluationSets((quiz,), QualityRules(), tmp_path / "cache").index
    assert (index.num_instances, index.overlaps(row(A_TO_J)).instances) == (3, [1])
