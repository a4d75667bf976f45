"""Points of two figures each, as SVG: numbered, the best trades joined."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from tasks.report.svg import Chart, Labels, Plane, axes, framed, path, text, ticks

Kind = Literal["best", "dominated", "not passed"]
COLOURS: dict[Kind, str] = {"best": "green", "dominated": "grey", "not passed": "bad"}


class Dot(NamedTuple):
    name: str
    x: float
    y: float
    kind: Kind


def scatter(labels: Labels, dots: Sequence[Dot], level: tuple[float, str] | None = None) -> Chart:
    """Return the points, those of kind "best" joined in their order along x. ``level``: (y, word) of a horizontal line.

    A point that is not passed is a cross, so that no kind is told by colour alone: best ones are large and joined.
    """
    y_values = [dot.y for dot in dots] + ([level[0]] if level else [])
    x_ticks = ticks(min(0.0, *(dot.x for dot in dots)), max(dot.x for dot in dots))
    y_ticks = ticks(min(y_values), max(y_values))
    plane = Plane((x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1]))
    parts = [axes(plane, labels, x_ticks, y_ticks)]
    if level:
        (left, y), (right, _) = plane.at(plane.x[0], level[0]), plane.at(plane.x[1], level[0])
        parts += [
            f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" class="level"/>',
            text(right - 2, y - 4, level[1], "tick", "end"),
        ]
    best = sorted((dot.x, dot.y) for dot in dots if dot.kind == "best")
    parts.append(path(plane, best, COLOURS["best"], is_faint=True))
    for dot in dots:
        x, y = plane.at(dot.x, dot.y)
        parts += [_mark(x, y, dot.kind), text(x + 7, y - 5, dot.name, "tick")]
    said = "; ".join(f"{dot.name}: {dot.y:.4g} for {dot.x:.4g} ({dot.kind})" for dot in dots)
    return framed("".join(parts), labels.title, f"{labels.title} ({labels.x}): {said}")


def _mark(x: float, y: float, kind: Kind) -> str:
    if kind == "not passed":
        strokes = f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"
        return f'<path d="{strokes}" class="line {COLOURS[kind]}"/>'
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{5 if kind == "best" else 3.5}" class="dot {COLOURS[kind]}"/>'
    )
