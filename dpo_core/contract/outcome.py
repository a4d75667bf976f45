"""A figure before and after training, and whether chance alone would move it as far."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

EXACT_UNTIL = 1000  # changes, or degrees of freedom; beyond, the normal distribution is as good


@dataclass(frozen=True, slots=True)
class Outcome:
    """``chance``: the probability of a change at least as large, in either direction, if there were none (two-sided p).
    ``adjusted``: the same with the others counted that it is told among, see ``told_together``; None: told alone."""

    label: str
    before: float
    after: float
    chance: float
    adjusted: float | None = None
    among: int = 1

    @property
    def change(self) -> float:
        return self.after - self.before

    @property
    def counts(self) -> float:
        """The probability that decides."""
        return self.chance if self.adjusted is None else self.adjusted

    def fell(self, level: float) -> bool:
        """Return whether it is less than before, by more than chance does at ``level``."""
        return self.change < 0 and self.counts < level

    def rose(self, level: float) -> bool:
        """Return whether it is more than before, by more than chance does at ``level``."""
        return self.change > 0 and self.counts < level

    @property
    def in_words(self) -> str:
        """Return "instructions kept 0.30 to 0.85 (p < 0.001)"; of several figures also what they leave of it."""
        alone, counted = chance_in_words(self.chance), chance_in_words(self.counts)
        among = "" if counted == alone else f", {counted.removeprefix('p = ')} as one of {self.among} figures"
        return f"{self.label} {self.before:.2f} to {self.after:.2f} ({alone}{among})"


def told_together(outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """Return the outcomes with the others counted: of twenty tasks that training left alone one falls below 0.05 by chance,
    on average, and the smallest probability of several is no probability.

    Holm's step-down (Scandinavian Journal of Statistics 6, 1979): the smallest counts as often as there are outcomes, the
    next once less; whatever hangs together, a false one is among those below a level no oftener than the level says.
    """
    if len(outcomes) < 2:
        return tuple(outcomes)
    adjusted, least = {}, 0.0
    for rank, place in enumerate(sorted(range(len(outcomes)), key=lambda place: outcomes[place].chance)):
        least = max(least, min(1.0, (len(outcomes) - rank) * outcomes[place].chance))
        adjusted[place] = least
    return tuple(
        replace(outcome, adjusted=adjusted[place], among=len(outcomes))
        for place, outcome in enumerate(outcomes)
    )


def times(outcome: Outcome, number: int) -> Outcome:
    """Return the outcome as one that was looked at so many times (Bonferroni)."""
    if number < 2:
        return outcome
    return replace(outcome, adjusted=min(1.0, number * outcome.counts), among=number * outcome.among)


def paired_outcome(label: str, judged: Iterable[tuple[bool, bool]]) -> Outcome | None:
    """Return the outcome of yes-or-no verdicts on the same items before and after; None of no items.

    Only items that changed tell something: the exact sign test on them (McNemar, Psychometrika 12, 1947; exact as a
    binomial with probability one half).
    """
    pairs = list(judged)
    if not pairs:
        return None
    gained = sum(after and not before for before, after in pairs)
    lost = sum(before and not after for before, after in pairs)
    return Outcome(
        label,
        sum(before for before, _ in pairs) / len(pairs),
        sum(after for _, after in pairs) / len(pairs),
        sign_test(gained, lost),
    )


@dataclass(frozen=True, slots=True)
class Draws:
    """How sure two accuracies are: standard errors that count each prompt once, and how many prompts there are."""

    before: float
    after: float
    num_prompts: int


def accuracy_outcome(
    label: str, before: float, after: float, num_pairs: int, draws: Draws | None = None
) -> Outcome:
    """Return the outcome of a share of ``num_pairs`` pairs. Before training it is one half by definition where rewards are
    measured against the start itself; else both shares come from samples.

    Pairs of one prompt are alike, so they tell less than as many prompts would: where prompts have several, ``draws`` counts
    (Miller, Adding Error Bars to Evals, arXiv 2411.00640, section 2.2). Between two measured shares their errors are added
    as if they were of other pairs, which is more than the error of the change.
    """
    is_by_definition = before == 0.5 and (draws is None or draws.before == 0)
    if draws is not None and not (is_by_definition and draws.num_prompts == num_pairs):
        error = math.hypot(draws.before, draws.after)
        return measured_outcome(label, before, after, error, draws.num_prompts)
    if is_by_definition:
        wins = round(after * num_pairs)
        return Outcome(label, before, after, sign_test(wins, num_pairs - wins))
    variance = sum(share * (1 - share) / max(1, num_pairs) for share in (before, after))
    return measured_outcome(label, before, after, math.sqrt(variance), num_pairs)


def measured_outcome(label: str, before: float, after: float, stderr: float, num_draws: int) -> Outcome:
    """Return the outcome of two means whose difference has the standard error ``stderr``, of ``num_draws`` independent
    differences."""
    return Outcome(label, before, after, chance_of(after - before, stderr, num_draws))


def chance_of(change: float, stderr: float, num_draws: int, num_moved: int | None = None) -> float:
    """Return the two-sided p-value of a mean of independent differences, ``num_moved`` of which are not nought (None: all).

    Student's, and no less than if all that moved had moved alike by chance, 2 / 2^n: few draws that agree have next to no
    standard error, and are not sure for that.
    """
    if change == 0 or num_draws < 2:
        return 1.0
    moved = num_draws if num_moved is None else num_moved
    fewest = 2.0 ** (1 - min(moved, EXACT_UNTIL))
    if stderr == 0:
        return min(1.0, fewest)
    return min(1.0, max(fewest, student(abs(change) / stderr, num_draws - 1)))


def student(t: float, freedom: int) -> float:
    """Return how often Student's t with ``freedom`` >= 1 degrees is at least ``t`` >= 0 away from nought (Abramowitz and
    Stegun, 26.7.3 and 26.7.4: finite sums)."""
    if freedom > EXACT_UNTIL:
        return math.erfc(t / math.sqrt(2))
    theta = math.atan2(t, math.sqrt(freedom))
    squared, is_odd = math.cos(theta) ** 2, freedom % 2
    term, total = math.sin(theta) * (math.cos(theta) if is_odd else 1.0), 0.0
    for number in range(1 + is_odd, freedom, 2):
        total += term
        term *= squared * number / (number + 1)
    inside = 2 / math.pi * (theta + total) if is_odd else total
    return max(0.0, 1.0 - inside)


def sign_test(gained: int, lost: int) -> float:
    """Return the two-sided p-value of so many changes for the better and the worse, each as likely as the other."""
    changed = gained + lost
    if changed > EXACT_UNTIL:  # with Yates's correction
        return math.erfc(max(0, abs(gained - lost) - 1) / math.sqrt(2 * changed))
    tail = sum(math.comb(changed, count) for count in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**changed)


def chance_in_words(chance: float) -> str:
    """Return "p = 0.034" """
    return "p < 0.001" if chance < 0.001 else f"p = {chance:.2g}"
