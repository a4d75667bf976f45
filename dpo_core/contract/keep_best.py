"""Which of a run's steps is the best by what was measured on held-out pairs, and when to stop looking for a better one.

Both are functions of the evaluations that are written down and nothing else, so a run that was killed and goes on chooses
what the whole run would have chosen.
"""

import math
from collections.abc import Collection, Sequence
from typing import Literal

from pydantic import Field

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.metric_names import BY_SOURCE, EVALUATED, direction_of, of_set, set_and_metric
from dpo_core.contract.metrics_file import Metrics
from dpo_core.contract.quantities import Count
from dpo_core.contract.section import Section

Mode = Literal["max", "min"]
EXTREME: dict[Mode, str] = {"max": "highest", "min": "lowest"}


class KeepBest(Section):
    """The checkpoint that is kept beside the newest, and that is exported in the end."""

    metric: str = Field(
        "rewards/accuracies",
        min_length=1,
        max_length=1000,
        description="What evaluation.every measures: loss, rewards/accuracies, rewards/margins, ...",
    )
    mode: Mode | None = Field(
        None, description="Whether more is better (max) or less (min). Empty: as the metric has it."
    )
    patience: Count | None = Field(
        None, description="Stop after this many evaluations in a row without a better one. Empty: never."
    )
    min_delta: float = Field(
        0.0, ge=0, le=1e15, description="An evaluation is better only if it is so by more than this."
    )

    @property
    def direction(self) -> Mode:
        """``mode``, or that of the metric. Raises ``ConfigError`` if it has none by itself."""
        better = direction_of(self.metric)
        if self.mode is None and not better:
            raise ConfigError(
                f"train.keep_best.metric {self.metric}: neither more nor less is better by itself. Say which by "
                "train.keep_best.mode: max or min."
            )
        return self.mode or ("max" if better > 0 else "min")


class BestStep(Section):
    """The step whose weights came out of a training, and by which figures it was chosen."""

    metric: str
    mode: Mode
    step: int
    value: float
    last_step: int  # that was trained
    last_value: float
    planned_steps: int
    num_evaluations: int

    @property
    def stopped_early(self) -> bool:
        """Whether patience ended the training before its time."""
        return self.last_step < self.planned_steps

    @property
    def in_words(self) -> str:
        """Return it as a sentence without its full stop."""
        end = f", {self.last_value:.4g} at the last one" if self.step != self.last_step else ", the last one"
        early = f"; training stopped early, after {self.last_step} of {self.planned_steps} steps"
        return (
            f"the weights of step {self.step}, the best of {self.num_evaluations} evaluations by held-out {self.metric} "
            f"({EXTREME[self.mode]}: {self.value:.4g}{end})" + (early if self.stopped_early else "")
        )


def check_metric(
    keep: KeepBest,
    names: Collection[str] | None = None,
    sets: Sequence[str] = (),
    answered: Sequence[str] = (),
) -> None:
    """Raise ``ConfigError`` that names what is measured unless the metric is. Without ``names``, before anything is known
    of the mixture: metrics by source pass, those of the named ``sets``, and what is ``answered``."""
    if keep.metric in ((*EVALUATED, *answered) if names is None else names):
        return
    if names is None and keep.metric.startswith(f"{BY_SOURCE}/"):
        return
    of, metric = set_and_metric(keep.metric)
    if names is None and of in sets and metric in (*EVALUATED, *answered):
        return
    measured = ", ".join(
        names
        or (
            *EVALUATED,
            *answered,
            f"{BY_SOURCE}/<source>/rewards/accuracies (where there are several)",
            *(of_set(name, "rewards/accuracies, ...") for name in sets),
        )
    )
    raise ConfigError(
        f"train.keep_best.metric is {keep.metric}, which evaluation.every does not measure here. It measures: {measured}."
    )


def best_of(keep: KeepBest, evaluations: Metrics, planned_steps: int) -> BestStep | None:
    """Return the best of the evaluations so far, oldest first; the earlier one of equals. None where none is a number."""
    best, last, measured = None, None, _measured(keep, evaluations)
    for one in measured:
        last = (int(one["step"]), one[keep.metric])
        if _is_better(keep, last[1], None if best is None else best[1]):
            best = last
    if best is None or last is None:
        return None
    return BestStep(
        metric=keep.metric,
        mode=keep.direction,
        step=best[0],
        value=best[1],
        last_step=last[0],
        last_value=last[1],
        planned_steps=planned_steps,
        num_evaluations=len(measured),
    )


def is_out_of_patience(keep: KeepBest, evaluations: Metrics) -> bool:
    """Return whether so many evaluations in a row were no better than one before that training stops."""
    best = best_of(keep, evaluations, planned_steps=0)
    without = [one for one in _measured(keep, evaluations) if best is None or one["step"] > best.step]
    return keep.patience is not None and len(without) >= keep.patience


def _measured(keep: KeepBest, evaluations: Metrics) -> Metrics:
    """Those that a step's weights can be chosen by: prompts are answered before the first step, too, and seldomer than pairs
    are scored."""
    return [one for one in evaluations if one["step"] > 0 and keep.metric in one]


def _is_better(keep: KeepBest, value: float, best: float | None) -> bool:
    """What is no number, or none that could be passed, is never better."""
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    gain = value - best if keep.direction == "max" else best - value
    return gain > keep.min_delta
