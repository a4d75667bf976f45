"""Curves in characters: a shape by hand, and nothing that breaks out of its room."""

import math

from hypothesis import given
from hypothesis import strategies as st

from tasks.report.character_plot import plotted

STYLES = ("line", "mark")
POINTS = st.lists(st.tuples(st.floats(0, 1e6), st.floats(allow_nan=True)), max_size=30)


def rows(line, points=(), size=(8, 2)) -> list[str]:
    return ["".join(text for text, _ in row) for row in plotted(line, points, size, STYLES)]


def test_a_rising_line_by_hand():
    # Behind the labels' margin of three are 4 x 2 characters = 8 x 8 dots: the diagonal, from below left.
    assert rows([(0, 0.0), (7, 10.0)], size=(7, 2)) == ["10   ⡠⠊", " 0 ⡠⠊  "]


def test_a_mark_stands_over_the_line_in_its_own_style():
    parts = plotted([(0, 1.0), (10, 1.0)], [(10, 1.0)], (6, 1), STYLES)
    assert parts == [[("1 ", "dim"), ("⠤⠤⠤", "line"), ("o", "mark")]]


def test_what_is_no_number_is_left_out():
    nothing = [(1, math.nan), (2, math.inf)]
    assert rows(nothing) == [" " * 8] * 2
    assert rows([(0, 0.0), *nothing, (7, 10.0)], size=(7, 2)) == rows([(0, 0.0), (7, 10.0)], size=(7, 2))


def test_one_point_and_one_value_are_drawn():
    assert any("⠀" < letter <= "⣿" for letter in rows([(3, 0.5)])[0] + rows([(3, 0.5)])[1])
    assert rows([], [(3, 0.5)])[1 - 1 :] != [" " * 8] * 2


@given(POINTS, POINTS, st.integers(4, 60), st.integers(1, 8))
def test_it_fills_its_room_and_no_more(line, points, width, height):
    drawn = rows(line, points, (width, height))
    assert [len(row) for row in drawn] == [width] * height
