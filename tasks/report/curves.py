"""The training curves: ``metrics.jsonl`` -> charts."""

import math
from collections.abc import Callable, Sequence

from dpo_core.contract.metrics_file import Metrics
from tasks.report.svg import Chart, Line, Point, line_chart

MAX_POINTS = 240  # of a line; more are averaged in equal pieces
STEPS_TO_SMOOTH = 24  # from here on a noisy line gets its running mean
SMOOTHING = 12  # the running mean weighs about the last n-th part of the run


def tokens_of(step: dict[str, float]) -> float:
    """Return tokens of the step's batch, prompts counted with both answers."""
    return step.get("tokens_per_second", math.nan) * step.get("step_seconds", math.nan)


def tokens_per_pair(step: dict[str, float]) -> float:
    return tokens_of(step) / (step.get("pairs") or math.nan)


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


def training_charts(metrics: Metrics) -> tuple[Chart, ...]:
    """Return loss, accuracy, margin, rewards, gradient norm, length, learning rate, throughput; none without a step."""
    if not metrics:
        return ()
    marks = restarts(metrics)

    def chart(
        title: str,
        unit: str,
        series: Sequence[tuple[str, str, str | Callable[[dict[str, float]], float]]],
        is_noisy: bool = True,
        level: tuple[float, str] | None = None,
        y_bounds: tuple[float, float] | None = None,
    ) -> Chart:
        return line_chart(
            title, "optimizer step", unit, _lines(metrics, series, is_noisy), marks, level, y_bounds
        )

    return (
        chart("Loss", "mean over pairs", [("", "blue", "loss")]),
        chart(
            "Reward accuracy",
            "share of pairs",
            [("", "green", "rewards/accuracies")],
            level=(0.5, "chance"),
            y_bounds=(0.0, 1.0),
        ),
        chart(
            "Reward margin",
            "chosen − rejected, loss's units",
            [("", "purple", "rewards/margins")],
            level=(0.0, ""),
        ),
        chart(
            "Rewards",
            "loss's units",
            [("chosen", "blue", "rewards/chosen"), ("rejected", "orange", "rewards/rejected")],
        ),
        chart(
            "Log-probability per token",
            "nats",
            [
                ("chosen", "blue", "logps_per_token/chosen"),
                ("rejected", "orange", "logps_per_token/rejected"),
            ],
        ),
        chart("Gradient norm", "before clipping", [("", "grey", "grad_norm")]),
        chart(
            "Length",
            "tokens a pair",
            [("whole pair", "grey", tokens_per_pair), ("trained", "purple", "trained_tokens_per_pair")],
        ),
        chart("Learning rate", "AdamW's step size", [("", "grey", "learning_rate")], is_noisy=False),
        chart("Throughput", "tokens a second", [("", "green", "tokens_per_second")]),
    )


def _lines(
    metrics: Metrics,
    series: Sequence[tuple[str, str, str | Callable[[dict[str, float]], float]]],
    is_noisy: bool,
) -> list[Line]:
    lines = []
    for name, colour, value in series:
        points = points_of(metrics, value)
        if is_noisy and len(points) >= STEPS_TO_SMOOTH:
            lines += [Line("", colour, points, is_faint=True), Line(name, colour, smoothed(points))]
        else:
            lines.append(Line(name, colour, points))
    return lines
