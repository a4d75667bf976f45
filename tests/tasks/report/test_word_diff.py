"""Which words differ between two answers: by hand, in every script, and never at the cost of the text itself."""

import time

import pytest
from hypothesis import given

from tasks.report.blocks import Sample, Samples
from tasks.report.html_samples import kinds_of, render_samples
from tasks.report.word_diff import word_diff
from tasks.text.escape import html_text
from tests.hostile_text import FEW, TEXTS


def marked(before: str, after: str) -> tuple[str, str]:
    """Both, with what differs in brackets."""
    sides = word_diff(before, after)
    old, new = ("".join(f"[{text}]" if is_changed else text for text, is_changed in side) for side in sides)
    return old, new


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("The sea is wide.", "The sea is deep.", ("The sea is [wide].", "The sea is [deep].")),
        ("one two", "one two three four", ("one two", "one two [three four]")),
        ("Paris is nice", "Paris, is nice", ("Paris is nice", "Paris[,] is nice")),
        ("a  b\nc", "a b c", ("a  b\nc", "a b c")),  # blanks alone are no difference
        ("我喜欢海", "我喜欢山", ("我喜欢[海]", "我喜欢[山]")),
        ("same", "same", ("same", "same")),
        ("nothing in common here", "all of this differs", ("nothing in common here", "all of this differs")),
        ("", "new", ("", "new")),
    ],
)
def test_what_differs_by_hand(before, after, expected):
    assert marked(before, after) == expected


@given(TEXTS, TEXTS)
@FEW
def test_the_runs_are_the_texts_and_look_as_the_texts_do(first, second):
    for before, after in ((first, second), (f"{first} and {second}", f"{first} or {second}")):
        for text, runs in zip((before, after), word_diff(before, after), strict=True):
            assert "".join(run for run, _ in runs) == text
            assert "".join(html_text(run) for run, _ in runs) == html_text(text)


def test_a_hostile_pair_takes_no_time():
    began = time.process_time()
    word_diff("a b " * 900, "b a " * 900)
    word_diff("x " * 100_000, "y " * 100_000)
    assert time.process_time() - began < 5


LOST = Sample("p", "one two", "one", True, False)
GAINED = Sample("p", "one", "one two", False, True, is_telling=False)
SAME = Sample("p", "one", "one", is_telling=False)


def test_each_sample_is_of_its_kinds():
    assert kinds_of(LOST) == ("telling", "lost", "shorter", "all")
    assert kinds_of(GAINED) == ("gained", "longer", "all")
    assert kinds_of(SAME) == ("same", "all")


def test_a_reader_chooses_between_the_kinds_that_there_are():
    written = render_samples(Samples((LOST, GAINED, SAME)))
    assert 'value="telling" checked' in written
    for choice in ("instruction no longer kept (1)", "kept only now (1)", "the same answer (1)", "all (3)"):
        assert choice in written
    assert "one<ins>two</ins>" not in written
    assert "one <ins>two</ins>" in written
    assert "one <del>two</del>" in written


def test_where_all_are_shown_none_are_told_apart():
    written = render_samples(Samples((LOST,)))
    assert "telling" not in written.split("</div>")[0]
    assert 'value="all" checked' in written
