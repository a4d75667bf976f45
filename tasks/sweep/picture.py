"""A sweep as one picture: the metric over the grid."""

import io
from collections import defaultdict
from pathlib import Path

from dpo_core.contract.store import write_bytes
from tasks.gate.rules import failed_checks
from tasks.sweep.outcomes import MemberOutcome, SweepOutcome

PICTURE_FILE = "sweep.png"
ALONG = (
    "beta",
    "learning_rate",
    "loss",
    "seed",
)  # the first of these with several values is the horizontal axis
Setting = str | int | float


def axis_of(outcome: SweepOutcome) -> str:
    """Return the dimension to draw along."""
    varied = [name for name in ALONG if len({member.settings.get(name) for member in outcome.members}) > 1]
    return varied[0] if varied else next(iter(outcome.members[0].settings))


def lines_of(outcome: SweepOutcome, along: str) -> dict[str, dict[Setting, list[MemberOutcome]]]:
    """Return line (the other settings but the seed, in words) -> place on the axis -> the members there, one a seed."""
    lines: dict[str, dict[Setting, list[MemberOutcome]]] = defaultdict(lambda: defaultdict(list))
    for member in outcome.members:
        if member.error is None and outcome.metric in member.after:
            others = ", ".join(
                f"{name.replace('_', ' ')} {value}"
                for name, value in member.settings.items()
                if name not in (along, "seed")
            )
            lines[others][member.settings[along]].append(member)
    return lines


def draw_sweep(outcome: SweepOutcome, folder: Path) -> Path:
    """Draw ``sweep.png`` in ``folder``: a dot a member, a line through the means over seeds; a cross where the
    gate is not passed, a star for the winner. Members that failed are named below. -> its path"""
    from matplotlib.figure import (
        Figure,
    )  # here: a second is spent on this import only where a picture is drawn

    along = axis_of(outcome)
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    values = sorted({member.settings[along] for member in outcome.members})
    places = {
        value: value if along in ("beta", "learning_rate") else place for place, value in enumerate(values)
    }
    for label, at in lines_of(outcome, along).items():
        xs = sorted(places[value] for value in at)
        means = {
            places[value]: sum(member.after[outcome.metric] for member in members) / len(members)
            for value, members in at.items()
        }
        (line,) = axes.plot(xs, [means[x] for x in xs], label=label or None, alpha=0.6)
        for value, members in at.items():
            for member in members:
                mark = (
                    "*" if member.number == outcome.winner else "x" if failed_checks(member.checks) else "o"
                )
                axes.plot(
                    places[value],
                    member.after[outcome.metric],
                    mark,
                    color=line.get_color(),
                    markersize=18 if mark == "*" else 7,
                    markeredgecolor="black" if mark == "*" else None,
                    zorder={"o": 3, "x": 4, "*": 5}[mark],
                )
    if along in ("beta", "learning_rate") and len(values) > 1:
        axes.set_xscale("log")
    axes.set_xticks(
        list(places.values()), [f"{value:g}" if not isinstance(value, str) else value for value in places]
    )
    axes.minorticks_off()
    axes.set(
        xlabel=along.replace("_", " "),
        ylabel=outcome.metric,
        title=f"{outcome.metric}, held out (★ winner, × gate)",
    )
    axes.grid(alpha=0.3)
    if any(lines_of(outcome, along)):
        figure.legend(loc="outside right upper")
    if failed := [member.label for member in outcome.members if member.error is not None]:
        figure.supxlabel(f"failed: {'; '.join(failed)}", fontsize=8)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=90)
    write_bytes(folder / PICTURE_FILE, content.getvalue())
    return folder / PICTURE_FILE
