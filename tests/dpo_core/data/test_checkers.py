"""Every verifiable instruction against answers judged by hand."""

import time

import pytest

from dpo_core.contract.errors import DataError
from dpo_core.data.checkers import OURS, check, is_meant, judge, misfit, passes
from dpo_core.data.sentences import num_sentences, num_words

KEPT = {
    "one_sentence": [
        ({}, "Bread rises because yeast makes gas."),
        ({}, "Ask Dr. Lee, e.g. by letter!"),
        ({}, "Really?"),
        ({}, 'She said "no."'),
        ({}, "Pi is about 3.14 and that is enough."),
        ({}, "水很热."),
        ({}, "**It is yeast.**"),
        ({}, "She said “no.”"),
    ],
    "max_words": [({"limit": 3}, "One well-known word"), ({"limit": 2}, "don't - stop!")],
    "min_words": [({"limit": 2}, "two words"), ({"limit": 2}, "and three words")],
    "lower_case": [({}, "small letters, and 3 digits."), ({}, "ça va")],
    "upper_case": [({}, "ALL LOUD, 24/7!")],
    "no_list": [({}, "A dash - inside - a line."), ({}, "In 1990. 2 more came."), ({}, "**Bold** start")],
    "no_commas": [({}, "Plain and short.")],
    "no_digits": [({}, "Two or three.")],
    "starts_with": [({"phrase": "Yes"}, "Yes, it does."), ({"phrase": "In short,"}, "In short, no.")],
    "ends_with": [({"phrase": "Any questions?"}, "Here it is. Any questions?")],
    "contains": [({"word": "water"}, "Water boils."), ({"word": "water"}, "Hot (water) boils.")],
    "excludes": [({"word": "very"}, "Every day is fine.")],
    "quoted": [({}, '"Slow and steady."')],
}
BROKEN = {
    "one_sentence": [
        ({}, "One. Two."),
        ({}, "No end"),
        ({}, "First line\nand second."),
        ({}, "Done. And then"),
        ({}, "It is 5. Then 6."),
        ({}, "."),
        ({}, "| ..."),
        ({}, "Dr. Lee came"),
        ({}, "He said “no.” She left."),
        ({}, "Er sagte »nein.« Sie ging."),
        ({}, "**It is yeast.** It makes gas."),
        ({}, "_Yes._ It does."),
    ],
    "max_words": [({"limit": 3}, "One two three four")],
    "min_words": [({"limit": 3}, "two words")],
    "lower_case": [({}, "Almost small"), ({}, "123")],
    "upper_case": [({}, "ALMOST LOUd"), ({}, "123")],
    "no_list": [
        ({}, "Buy:\n- milk"),
        ({}, "1. milk\n2. bread"),
        ({}, "So:\n  * milk"),
        ({}, "So:\n 3) milk"),
    ],
    "no_commas": [({}, "Short, plain.")],
    "no_digits": [({}, "The 1st.")],
    "starts_with": [
        ({"phrase": "Yes"}, "Yesterday it did."),
        ({"phrase": "Yes"}, "Oh, Yes"),
        ({"phrase": "Yes"}, "yes"),
    ],
    "ends_with": [({"phrase": "Any questions?"}, "Any questions? No.")],
    "contains": [({"word": "water"}, "The waters rose.")],
    "excludes": [({"word": "very"}, "Very fine.")],
    "quoted": [({}, '"Slow" and "steady"'), ({}, "Slow and steady"), ({}, '""')],
}


def _cases(table: dict) -> list:
    return [
        pytest.param(name, arguments, answer, id=f"{name}-{answer[:20]!r}")
        for name, cases in table.items()
        for arguments, answer in cases
    ]


@pytest.mark.parametrize(("name", "arguments", "answer"), _cases(KEPT))
def test_kept(name: str, arguments: dict, answer: str) -> None:
    assert check(answer, {"name": name, **arguments})


@pytest.mark.parametrize(("name", "arguments", "answer"), _cases(BROKEN))
def test_broken(name: str, arguments: dict, answer: str) -> None:
    assert not check(answer, {"name": name, **arguments})


def test_every_checker_has_hand_cases_on_both_sides() -> None:
    assert set(KEPT) == set(BROKEN) == set(OURS)


@pytest.mark.parametrize("name", sorted(OURS))
def test_an_empty_answer_keeps_nothing(name: str) -> None:
    assert not check(" \n", {"name": name, **KEPT[name][0][0]})


def test_surrounding_white_space_does_not_count() -> None:
    assert check("\n Yes. \n", {"name": "one_sentence"})


def test_counts_by_hand() -> None:
    assert num_words("It's a well-known fact: 2 + 2 = 4.") == 7
    assert num_sentences("One. Two! Three?! And a tail") == 4


@pytest.mark.parametrize(
    ("name", "argument"), [("contains", "word"), ("excludes", "word"), ("starts_with", "phrase")]
)
def test_a_word_of_megabytes_takes_no_time(name: str, argument: str) -> None:
    started = time.process_time()
    assert passes("a" * 1000, [{"name": name, argument: "a" * 5_000_000}]) == (name == "excludes")
    assert time.process_time() - started < 1


def test_all_constraints_must_hold() -> None:
    constraints = [{"name": "one_sentence"}, {"name": "max_words", "limit": 4}]
    assert passes("Yeast makes gas.", constraints)
    assert not passes("Yeast makes a lot of gas.", constraints)
    assert not passes("Yeast. Gas.", constraints)
    assert passes("anything", [])


def test_absent_arguments_may_be_null() -> None:
    """Arrow gives every row the keys of all rows."""
    assert passes("Yeast makes gas.", [{"name": "one_sentence", "limit": None, "phrase": None}])


def test_an_unknown_instruction_lists_the_known() -> None:
    with pytest.raises(DataError, match=r"got name 'haiku'.*one_sentence"):
        passes("Yes.", [{"name": "haiku"}])


@pytest.mark.parametrize(
    "constraint",
    [
        {"name": "max_words"},
        {"name": "max_words", "limit": "ten"},
        {"name": "one_sentence", "limit": 3},
        {"name": "starts_with", "phrase": 5},
    ],
)
def test_wrong_arguments_are_named(constraint: dict) -> None:
    with pytest.raises(DataError, match=constraint["name"]):
        passes("Yes.", [constraint])


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        ({"name": "max_words", "limit": 5}, None),
        ({"name": "max_words", "limit": 5.0, "phrase": None}, None),
        ({"name": "no_commas"}, None),
        ({"name": "contains", "word": "sea"}, None),
        ({"name": "haiku"}, "'haiku' is no known instruction"),
        ({"limit": 5}, "None is no known instruction"),
        ({"name": "max_words", "n": 5}, "max_words takes limit, got n"),
        ({"name": "max_words", "limit": "5"}, "limit is '5', expected int"),
        ({"name": "max_words", "limit": True}, "limit is True"),
        ({"name": "max_words", "limit": 5.5}, "limit is 5.5"),
        ({"name": "one_sentence", "limit": 3}, "takes no arguments, got limit"),
        ({"name": "starts_with", "phrase": 5}, "phrase is 5, expected str"),
        ({"name": "contains", "word": ["a"]}, "expected str"),
    ],
)
def test_what_can_be_checked_is_told_without_an_answer(constraint: dict, reason: str | None) -> None:
    found = misfit(constraint)
    if reason is None:
        assert found is None
        assert isinstance(passes("The sea is blue.", [constraint]), bool)
    else:
        assert found is not None
        assert reason in found


def test_instructions_of_another_program_are_none_of_ours_and_misspelt_ones_are() -> None:
    foreign = ("length_constraints:number_words", "keywords:existence", "keywords:stop", "haiku", "")
    assert not any(is_meant({"name": name, "n": 3}) for name in foreign)
    assert is_meant({"name": "keywords:existence", "keywords": ["sea"]})
    assert all(
        is_meant({"name": name}) for name in ("max_word", "maxwords", "one-sentence", "lowercase", *OURS)
    )


def test_a_verdict_tells_strict_from_loose() -> None:
    """The answer comes after a line of talk; without it both are kept."""
    verdict = judge(
        "Sure, here it is:\nyeast makes gas.", [{"name": "lower_case"}, {"name": "max_words", "limit": 9}]
    )
    assert verdict.strict == (False, True)
    assert verdict.loose == (True, True)
    assert not verdict.passes
