"""What others wrote can be looked at: nothing steers, nothing hides, and what is ordinary stays as it is."""

import pytest
from hypothesis import given

from dpo_core.contract.errors import ConfigError, HandoffRefused
from dpo_core.contract.visible import one_line, visible
from tests.hostile_text import ATTACKS, FEW, ORDINARY, TEXTS, calm


@FEW
@given(TEXTS)
def test_whatever_it_is_it_is_only_shown(text):
    once = visible(text)
    calm(once)
    assert visible(once) == once
    assert "\n" not in one_line(text)
    assert visible(one_line(text)) == one_line(text)


@pytest.mark.parametrize(
    "text",
    [
        *ORDINARY,
        "two\nlines\tand a tab",
        "🏳️‍🌈 👨‍👩‍👧‍👦 🏴‍☠️",
        "\u200eleft\u200f",
        "ᠮᠤᠩᠭᠣᠯ ᠬᠡᠯᠡ",
        "한국어",
        "Ελληνικά",
        "ไทย",
    ],
)
def test_what_is_ordinary_stays(text):
    assert visible(text) == text


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b31m", "\\x9b31m"),
        ("a\rb", "a\\x0db"),
        ("a\r\nb", "a\nb"),
        ("\u202ex", "\\u202ex"),
        ("pay\u200dpal", "pay\\u200dpal"),
        ("x\U000e0068", "x\\U000e0068"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_steers_or_hides_is_seen(text, seen):
    assert visible(text) == seen


def test_every_attack_on_terminals_is_known():
    for text in ATTACKS:
        calm(visible(text))


@pytest.mark.parametrize("kind", [ConfigError, HandoffRefused])
def test_the_text_of_an_error_is_visible(kind):
    error = kind("The file \x1b]52;c;ZXZpbA==\x07 has\n\ttwo lines")
    assert str(error) == "The file \\x1b]52;c;ZXZpbA==\\x07 has\n\ttwo lines"
    assert f"{error}" == str(error)
