"""Answers that say the same again and again: the share of 4-grams that are not new, by hand."""

import pytest

from dpo_core.contract.jobs import AnswerPair
from tasks.gate.loops import LOOP, repeated, without_loops

PLAIN = "To brighten your room, you can use a light source, a warm glow, and a few candles on the shelf."
LISTED = "\n".join(
    f"{number}. The {word} is {word}er than the last one." for number, word in enumerate("abcdef")
)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("without " * 13, 9 / 10),  # ten 4-grams, one of which is new
        ("one two three four five six " * 2 + "seven", 3 / 10),  # what begins again and goes on as before
        ("a b c d", 0.0),
        ("", 0.0),
        ("的" * 40, 36 / 37),
        ("哈" * 39, 0.0),  # too short to tell
        (("的" * 10 + "\n") * 12, 116 / 117),  # twelve lines, each of which is a loop
        ("天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏閏餘成歲律呂調陽雲騰致雨露結為霜", 0.0),
    ],
)
def test_what_is_not_new_by_hand(text: str, share: float) -> None:
    assert repeated(text) == pytest.approx(share)


def test_what_people_write_is_no_loop() -> None:
    assert repeated(PLAIN) == 0
    assert repeated(LISTED) < LOOP


def test_answers_that_fell_into_loops_are_counted_prompt_by_prompt() -> None:
    fell = AnswerPair(prompt="p", before=PLAIN, after="in " * 48)
    stayed = AnswerPair(prompt="p", before=PLAIN, after=PLAIN)
    outcome = without_loops("answers", [fell] * 8 + [stayed] * 2)
    assert (outcome.before, outcome.after, outcome.chance) == (1.0, pytest.approx(0.2), 2 / 2**8)
    assert without_loops("answers", [stayed] * 9) is None
    mended = AnswerPair(prompt="p", before="in " * 48, after=PLAIN)
    assert without_loops("answers", [mended] * 8).rose(0.05)
