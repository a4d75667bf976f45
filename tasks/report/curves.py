"""The training curves: rows of ``StepMetrics`` -> charts."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from dpo_core.contract.metric_names import OF_A_SOURCE, by_set, of_set, of_source, split_by_source
from dpo_core.contract.metrics_file import Metrics
from tasks.report.svg import Chart, Labels, Line, Point, line_chart
from tasks.run.step_metrics import TOKENS

MAX_POINTS = 240  # of a line; more are averaged in equal pieces
STEPS_TO_SMOOTH = 24  # from here on a noisy line gets its running mean
SOURCE_COLOURS = ("blue", "orange", "green", "purple", "grey")  # those with values at most steps have a line
HELD_OUT_COLOUR = "orange"
SET_COLOURS = ("bad", "warn", "grey")  # of as many sets
SIDES = (("chosen", "blue"), ("rejected", "orange"))
OF_SIDES = (("Rewards", "loss's units", "rewards"), ("Log-probability per token", "nats", "logps_per_token"))
OF_ANSWERS: tuple[tuple[str, str, str, tuple[float, float] | None], ...] = (  # the last: ends of its axis
    ("Words an answer", "mean of greedy answers", "answers/mean_words", None),
    ("Instructions kept", "share of greedy answers", "checker/pass_rate", (0.0, 1.0)),
    ("KL from the reference", "nats a token", "kl/per_token", None),
)
OF_HELD_OUT_SOURCES: tuple[
    tuple[str, str, str, tuple[float, str] | None, tuple[float, float] | None], ...
] = (  # the last two: a level that is drawn, ends of its axis
    ("Loss", "mean over pairs", "loss", None, None),
    ("Reward accuracy", "share of pairs", "rewards/accuracies", (0.5, "chance"), (0.0, 1.0)),
    ("Reward margin", "chosen − rejected, loss's units", "rewards/margins", (0.0, ""), None),
    ("Log-probability of chosen", "nats a token", "logps_per_token/chosen", None, None),
)
SMOOTHING = 12  # the running mean weighs about the last n-th part of the run


Series = tuple[str, str, str | Callable[[dict[str, float]], float]]  # name, colour, metric


def tokens_per_pair(step: dict[str, float]) -> float:
    """Return a pair's tokens, the prompt and both answers."""
    return step.get(TOKENS, math.nan) / (step.get("pairs") or math.nan)


def points_of(metrics: Metrics, value: str | Callable[[dict[str, float]], float]) -> list[Point]:
    """Return (step, value) of a metric, thinned to what a chart can show."""
    read = value if callable(value) else lambda step: step.get(value, math.nan)
    points = [(float(step["step"]), float(read(step))) for step in metrics]
    piece = max(1, -(-len(points) // MAX_POINTS))
    return [_mean(points[first : first + piece]) for first in range(0, len(points), piece)]


def _mean(points: Sequence[Point]) -> Point:
    finite = [y for _, y in points if math.isfinite(y)]
    return points[-1][0], sum(finite) / len(finite) if finite else math.nan


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Return the running mean, exponential, without the pull towards zero at its start."""
    keep, mean, weight, out = 1 - 1 / max(2.0, len(points) / SMOOTHING), 0.0, 0.0, []
    for x, y in points:
        if math.isfinite(y):
            mean, weight = keep * mean + (1 - keep) * y, keep * weight + (1 - keep)
        out.append((x, mean / weight if weight else math.nan))
    return out


def restarts(metrics: Metrics) -> list[tuple[float, str]]:
    """Return steps at which a resumed run went on: the first step of each start carries what was checked before it."""
    return [
        (step["step"], "resumed") for step in metrics[1:] if any(name.startswith("checks/") for name in step)
    ]


def training_charts(metrics: Metrics, evaluations: Metrics | None = None) -> tuple[Chart, ...]:
    """Return loss, accuracy, margin, rewards, log-probabilities, gradient norm, length, learning rate, throughput, and
    accuracy and margin by source where a mixture has several, and by source of its held-out pairs; none without a step.

    ``evaluations``: what was measured while training. Loss, accuracy and margin are drawn beside the training's own, the
    rest, where there is any, in charts of its own.
    """
    if not metrics:
        return ()
    marks, measured = restarts(metrics), evaluations or []

    def chart(title: str, unit: str, series: Sequence[Series], is_noisy: bool = True) -> Chart:
        return line_chart(_over_steps(title, unit), _lines(metrics, series, is_noisy), marks)

    return (
        *_held_out_charts(metrics, measured, marks),
        *(
            chart(title, unit, [(side, colour, f"{name}/{side}") for side, colour in SIDES])
            for title, unit, name in OF_SIDES
        ),
        chart("Gradient norm", "before clipping", [("", "grey", "grad_norm")]),
        chart(
            "Length",
            "tokens a pair",
            [("whole pair", "grey", tokens_per_pair), ("trained", "purple", "trained_tokens_per_pair")],
        ),
        chart("Learning rate", "AdamW's step size", [("", "grey", "learning_rate")], is_noisy=False),
        chart("Throughput", "tokens a second", [("", "green", "tokens_per_second")]),
        *_charts_of_evaluations(measured, marks),
        *_source_charts(metrics, marks),
        *_held_out_source_charts(measured, marks),
    )


def _over_steps(title: str, unit: str) -> Labels:
    return Labels(title, "optimizer step", unit)


def _held_out_charts(
    metrics: Metrics, evaluations: Metrics, marks: list[tuple[float, str]]
) -> Iterator[Chart]:
    """Loss, accuracy and margin in training, and beside them those of the held-out pairs where they were measured."""
    for title, unit, colour, name, level, y_bounds in (
        ("Loss", "mean over pairs", "blue", "loss", None, None),
        ("Reward accuracy", "share of pairs", "green", "rewards/accuracies", (0.5, "chance"), (0.0, 1.0)),
        ("Reward margin", "chosen − rejected, loss's units", "purple", "rewards/margins", (0.0, ""), None),
    ):
        lines = _lines(metrics, [("training" if evaluations else "", colour, name)], is_noisy=True)
        measured, some = _measured(evaluations, name)
        yield line_chart(_over_steps(f"{title}{some}", unit), [*lines, *measured], marks, level, y_bounds)


def _charts_of_evaluations(evaluations: Metrics, marks: list[tuple[float, str]]) -> Iterator[Chart]:
    """Rewards and log-probabilities of the mixture's own held-out pairs, and what was counted in the policy's answers:
    accuracy rises on while these tell that it gets worse."""
    for title, unit, name in OF_SIDES:
        lines = [
            Line(side, colour, points)
            for side, colour in SIDES
            if (points := _points_where(evaluations, f"{name}/{side}"))
        ]
        if lines:
            yield line_chart(_over_steps(f"{title}, held out", unit), lines, marks)
    for title, unit, name, y_bounds in OF_ANSWERS:
        lines, some = _measured(evaluations, name)
        if lines:
            yield line_chart(_over_steps(f"{title}{some}", unit), lines, marks, y_bounds=y_bounds)


def _measured(evaluations: Metrics, name: str) -> tuple[list[Line], str]:
    """A line of the mixture's own held-out pairs or prompts and one for each of the first named sets, where a metric was
    measured of them; and what a title says of sets that have none for want of colours."""
    sets = [
        of
        for of in dict.fromkeys(of for one in evaluations for of in by_set(one))
        if any(of_set(of, name) in one for one in evaluations)
    ]
    shown = [("", HELD_OUT_COLOUR), *zip(sets, SET_COLOURS, strict=False)]
    lines = [
        Line(of or "held out", colour, points)
        for of, colour in shown
        if (points := _points_where(evaluations, of_set(of, name)))
    ]
    left_out = len(sets) > len(SET_COLOURS)
    return lines, f", {len(SET_COLOURS)} of {len(sets)} sets" if left_out else ""


def _points_where(evaluations: Metrics, name: str) -> list[Point]:
    """Those of evaluations that measured it: not all ask prompts, and the one before the first step scores no pairs."""
    return points_of([one for one in evaluations if name in one], name)


def _source_charts(metrics: Metrics, marks: list[tuple[float, str]]) -> tuple[Chart, ...]:
    """Accuracy and margin, a line for each source; none where a mixture has one source, and so no such metrics."""
    shown, some = _sources_of(metrics)
    if not shown:
        return ()
    charts = []
    for metric, unit in zip(OF_A_SOURCE, ("share of pairs", "chosen − rejected, loss's units"), strict=True):
        series = [
            (source, colour, of_source(source, metric))
            for source, colour in zip(shown, SOURCE_COLOURS, strict=False)
        ]
        is_share = metric == OF_A_SOURCE[0]
        charts.append(
            line_chart(
                _over_steps(f"{'Reward accuracy' if is_share else 'Reward margin'} by source{some}", unit),
                _lines(metrics, series, is_noisy=True),
                marks,
                (0.5, "chance") if is_share else (0.0, ""),
                (0.0, 1.0) if is_share else None,
            )
        )
    return tuple(charts)


def _sources_of(rows: Metrics) -> tuple[list[str], str]:
    """The sources that were measured oftenest, one a colour, and what a title says of those that have none."""
    steps = Counter(found[0] for row in rows for name in row if (found := split_by_source(name)))
    shown = [source for source, _ in steps.most_common(len(SOURCE_COLOURS))]
    return shown, "" if len(shown) == len(steps) else f", {len(shown)} of {len(steps)} sources"


def _held_out_source_charts(evaluations: Metrics, marks: list[tuple[float, str]]) -> Iterator[Chart]:
    """What was measured of each source's held-out pairs: one source may get worse while the mixture's mean rises."""
    shown, some = _sources_of(evaluations)
    for title, unit, name, level, y_bounds in OF_HELD_OUT_SOURCES:
        lines = [
            Line(source, colour, points)
            for source, colour in zip(shown, SOURCE_COLOURS, strict=False)
            if (points := _points_where(evaluations, of_source(source, name)))
        ]
        if lines:
            labels = _over_steps(f"{title} by source, held out{some}", unit)
            yield line_chart(labels, lines, marks, level, y_bounds)


def _lines(metrics: Metrics, series: Sequence[Series], is_noisy: bool) -> list[Line]:
    lines = []
    for name, colour, value in series:
        points = points_of(metrics, value)
        if is_noisy and len(points) >= STEPS_TO_SMOOTH:
            lines += [Line("", colour, points, is_faint=True), Line(name, colour, smoothed(points))]
        else:
            lines.append(Line(name, colour, points))
    return lines
