"""Small charts as SVG text: lines, bars, a time line, a graph. Pure; no file, no library, no script.

Colours are classes, not values: a page that holds a chart inline colours it for light, dark or paper (``style.py``);
``standalone`` puts the light colours inside for places that show pictures alone. Coordinates are SVG units, y downwards.
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.report.style import CHART_COLOURS, CHART_STYLE
from tasks.text.escape import html_text

WIDTH, HEIGHT = 380, 244
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 44, 40  # margins of the plot inside a chart
NUM_TICKS = 4

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture and what it says in words, for those who do not see it."""

    svg: str
    alt: str
    title: str = ""
    is_wide: bool = False  # takes a row of its own


@dataclass(frozen=True, slots=True)
class Labels:
    """What stands at a chart: its title, and what its axes measure, with units."""

    title: str
    x: str
    y: str


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart. ``colour``: a class of ``style.CHART_COLOURS``. ``is_faint`` for raw values behind a mean."""

    name: str
    colour: str
    points: Sequence[Point]
    is_faint: bool = False


@dataclass(frozen=True, slots=True)
class Plane:
    """Maps values to the plot's rectangle."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: float = WIDTH
    height: float = HEIGHT

    def at(self, x: float, y: float) -> Point:
        """Return where a value lies."""
        return (
            LEFT + (x - self.x[0]) / (self.x[1] - self.x[0]) * (self.width - LEFT - RIGHT),
            self.height - BOTTOM - (y - self.y[0]) / (self.y[1] - self.y[0]) * (self.height - TOP - BOTTOM),
        )


def ticks(low: float, high: float, count: int = NUM_TICKS, whole: bool = False) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) from at or below ``low`` to at or above ``high``."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= count)
    step = max(1.0, round(step)) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def short(value: float) -> str:
    """Return a tick's label: 0.05, 1.2k, 3M, 5e-07."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e9):
        return f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e")
    for size, letter in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (size if letter == 'M' else 1e3):.4g}{letter}"
    return f"{value:.4g}"


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    """Return a line of text; ``kind`` is a class of the style sheet."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{html_text(content)}</text>'


def framed(
    body: str, title: str, alt: str, width: float = WIDTH, height: float = HEIGHT, is_wide: bool = False
) -> Chart:
    """Return a chart from its drawing."""
    svg = (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{html_text(alt)}"><title>{html_text(title)}</title>{body}</svg>'
    )
    return Chart(svg, alt, title, is_wide)


def sheet(charts: Sequence[Chart], columns: int = 3) -> Chart:
    """Return charts of the common size beside and below each other as one picture, for places that stack pictures."""
    parts = [
        chart.svg.replace(
            "<svg ",
            f'<svg x="{place % columns * WIDTH}" y="{place // columns * HEIGHT}" '
            f'width="{WIDTH}" height="{HEIGHT}" ',
            1,
        )
        for place, chart in enumerate(charts)
    ]
    rows = -(-len(charts) // columns)
    return framed(
        "".join(parts),
        ", ".join(chart.title for chart in charts),
        ". ".join(chart.alt for chart in charts),
        WIDTH * min(columns, len(charts)),
        HEIGHT * rows,
        is_wide=True,
    )


def standalone(chart: Chart) -> str:
    """Return the same as a picture by itself, in light colours on white, as a ``data:`` address."""
    opening, rest = chart.svg.split(">", 1)
    size = opening.split('viewBox="0 0 ')[1].split('"')[0].split()
    colours = "".join(f"svg{{--{name}:{light}}}" for name, (light, _) in CHART_COLOURS.items())
    style = f'<style>{colours}{CHART_STYLE}</style><rect width="{size[0]}" height="{size[1]}" class="paper"/>'
    whole = f'{opening} width="{size[0]}" height="{size[1]}">{style}{rest}'
    return "data:image/svg+xml;base64," + base64.b64encode(whole.encode()).decode()


def axes(plane: Plane, labels: Labels, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> str:
    """Return title, grid, tick labels and axis labels with their units."""
    bottom, right = plane.height - BOTTOM, plane.width - RIGHT
    parts = [text(8, 16, labels.title, "title"), text(plane.width - RIGHT, 16, labels.y, "unit", "end")]
    for value in y_ticks:
        y = plane.at(plane.x[0], value)[1]
        parts += [
            f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>',
            text(LEFT - 6, y + 4, short(value), "tick", "end"),
        ]
    for value in x_ticks:
        x = plane.at(value, plane.y[0])[0]
        parts += [
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}" class="axis"/>',
            text(x, bottom + 16, short(value), "tick", "middle"),
        ]
    parts += [
        f'<line x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}" class="axis"/>',
        text((LEFT + right) / 2, plane.height - 8, labels.x, "unit", "middle"),
    ]
    return "".join(parts)


def path(plane: Plane, points: Sequence[Point], colour: str, is_faint: bool = False) -> str:
    """Return a line through the finite points; a dot for each where they are few."""
    placed = [plane.at(x, y) for x, y in points if math.isfinite(y)]
    if not placed:
        return ""
    drawn = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
    kind = f"line {colour} faint" if is_faint else f"line {colour}"
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" class="dot {colour}"/>' for x, y in placed)
    return f'<path d="{drawn}" class="{kind}"/>' + (dots if len(placed) <= 24 and not is_faint else "")


def line_chart(
    labels: Labels,
    lines: Sequence[Line],
    marks: Sequence[tuple[float, str]] = (),
    level: tuple[float, str] | None = None,
    y_bounds: tuple[float, float] | None = None,
) -> Chart:
    """Return lines over whole numbers (steps). ``marks``: (x, word) of vertical lines; ``level``: (y, word) of a
    horizontal one.
    """
    points = [point for line in lines for point in line.points if math.isfinite(point[1])]
    if not points:
        return framed(
            text(8, 16, labels.title, "title") + text(WIDTH / 2, HEIGHT / 2, "no values", "unit", "middle"),
            labels.title,
            f"{labels.title}: no values",
        )
    values = [y for _, y in points] + ([level[0]] if level else [])
    y_ticks = ticks(*(y_bounds or (min(values), max(values))))
    x_values = [x for x, _ in points]
    low, high = min(x_values), max(x_values)
    plane = Plane((low, high) if high > low else (low - 0.5, low + 0.5), (y_ticks[0], y_ticks[-1]))
    x_ticks = [tick for tick in ticks(*plane.x, whole=True) if low <= tick <= high]
    parts = [axes(plane, labels, x_ticks or [low], y_ticks)]
    if level:
        (left, y), (right, _) = plane.at(plane.x[0], level[0]), plane.at(plane.x[1], level[0])
        parts += [
            f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" class="level"/>',
            text(right - 2, y - 4, level[1], "tick", "end"),
        ]
    for number, (x, word) in enumerate(marks):
        place = plane.at(x, plane.y[0])[0]
        parts += [
            f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" class="mark"/>',
            text(place + 3, HEIGHT - BOTTOM - 5, word if number == 0 else "", "tick"),
        ]
    parts += [path(plane, line.points, line.colour, line.is_faint) for line in lines]
    named = [line for line in lines if line.name]
    parts.append(legend([(line.name, line.colour) for line in named]) if len(named) > 1 else "")
    return framed("".join(parts), labels.title, _said(labels, named or lines))


def _said(labels: Labels, lines: Sequence[Line]) -> str:
    parts = []
    for line in lines:
        values = [y for _, y in line.points if math.isfinite(y)]
        if values:
            parts.append(
                f"{line.name or labels.title} from {values[0]:.4g} to {values[-1]:.4g} (lowest {min(values):.4g}, highest "
                f"{max(values):.4g})"
            )
    return f"{labels.title} ({labels.y}): " + "; ".join(parts)


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Return names in their colours, in a row between title and plot."""
    parts, x = [], float(LEFT)
    for name, colour in entries:
        parts += [
            f'<rect x="{x:.1f}" y="24" width="9" height="9" rx="2" class="fill {colour}"/>',
            text(x + 13, 32.5, name, "tick"),
        ]
        x += 24 + 6.2 * len(name)
    return "".join(parts)


def histogram(
    labels: Labels,
    bin_width: float,
    counts: Sequence[int],
    colour: str,
    marks: Sequence[tuple[float, str]] = (),
    x_end: float | None = None,
) -> Chart:
    """Return bars of equal width from 0. ``x_end``: a common end for histograms that are compared."""
    end = max(x_end or 0.0, bin_width * max(1, len(counts)))
    y_ticks = [tick for tick in ticks(0, max([1, *counts]), whole=True)]
    plane = Plane((0, end), (0, y_ticks[-1]))
    parts = [axes(plane, labels, [tick for tick in ticks(0, end, whole=True) if tick <= end], y_ticks)]
    for number, count in enumerate(counts):
        (left, top), (right, bottom) = (
            plane.at(number * bin_width, count),
            plane.at((number + 1) * bin_width, 0),
        )
        said = f"{number * bin_width:g} to {(number + 1) * bin_width - 1:g}: {count}"
        if count:
            parts.append(
                f'<rect x="{left + 0.4:.1f}" y="{top:.1f}" width="{max(right - left - 0.8, 0.6):.1f}" '
                f'height="{bottom - top:.1f}" class="fill {colour}"><title>{said}</title></rect>'
            )
    for x, _ in marks:
        place = plane.at(min(x, end), 0)[0]
        parts.append(
            f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{TOP - 4}" y2="{HEIGHT - BOTTOM}" class="mark"/>'
        )
    said = ", ".join(word for _, word in marks)
    parts.append(text(LEFT, 32.5, said, "tick"))
    alt = f"{labels.title}: {sum(counts)} {labels.y} in bins of {bin_width:g}; {said}"
    return framed("".join(parts), labels.title, alt)
