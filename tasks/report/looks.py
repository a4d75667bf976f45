"""By how many looks a checkpoint was chosen: the best of many is high by chance, so each counts where it is told. Pure."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from dpo_core.contract.benchmarks import PREFIX
from dpo_core.contract.judgement import JUDGED, PREFERRED
from dpo_core.contract.keep_best import BestStep
from dpo_core.contract.metric_names import (
    ACCURACY,
    ANSWERED,
    EVALUATED,
    KEPT,
    MEANINGS,
    label_of,
    of_set,
    set_and_metric,
    split_by_source,
)
from dpo_core.contract.outcome import Outcome
from tasks.sweep.outcomes import SweepOutcome


class ChosenBy(NamedTuple):
    """``number`` looks at ``metric``, at ``what``."""

    metric: str
    number: int
    what: str


def looks_of(best: BestStep | None = None, sweep: SweepOutcome | None = None) -> tuple[ChosenBy, ...]:
    """Return how a checkpoint was chosen: among evaluations while it trained, and among the members of a sweep."""
    found = [ChosenBy(best.metric, best.num_evaluations, "evaluations")] if best else []
    if sweep:
        measured = sum(sweep.metric in member.after for member in sweep.members)
        found.append(ChosenBy(sweep.metric, measured, "members"))
    return tuple(one for one in found if one.number > 1)


def counted(outcome: Outcome, looks: Iterable[ChosenBy]) -> Outcome:
    """Return the outcome of a checkpoint that may have been chosen by this very figure, or one of the same pairs or answers,
    with each look counted (Bonferroni), also where they are much alike. What fell, fell."""
    if outcome.change <= 0:
        return outcome
    label = outcome.label
    for one in looks:
        if label == _chosen_by(one.metric, label):
            name = f"{outcome.label.removesuffix(',')}, best of {one.number} {one.what},"
            outcome = replace(outcome, label=name, chance=min(1.0, one.number * outcome.chance))
    return outcome


def times_looked(outcome: Outcome, looks: Iterable[ChosenBy]) -> int:
    """Return among how many like it the outcome was chosen."""
    return math.prod(one.number for one in looks if outcome.label == _chosen_by(one.metric, outcome.label))


def accuracy_label(name: str = "") -> str:
    """Return what the accuracy of a named set is called in a verdict, or of no set ("")."""
    return f"{name + ': ' if name else ''}held-out {MEANINGS[ACCURACY].label}"


def _chosen_by(metric: str, label: str) -> str:
    """The label of the outcome that goes by the same pairs, answers or documents as a metric; empty for none. A task's own
    begins with its name."""
    if metric.startswith(PREFIX):
        return label if label.startswith(f"{metric.removeprefix(PREFIX)} ") else ""
    name, of = set_and_metric(metric)
    if of.startswith(JUDGED):
        return PREFERRED
    if of in EVALUATED or split_by_source(of) is not None:
        return accuracy_label(name)
    return label_of(of_set(name, KEPT)) if of in ANSWERED else ""
