"""A figure before and after training, and whether chance alone would move it as far."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

EXACT_UNTIL = 1000  # changes; beyond, the normal distribution is as good


@dataclass(frozen=True, slots=True)
class Outcome:
    """``chance``: the probability of a change at least as large, in either direction, if there were none (two-sided p)."""

    label: str
    before: float
    after: float
    chance: float

    @property
    def change(self) -> float:
        return self.after - self.before

    def fell(self, level: float) -> bool:
        """Return whether it is less than before, by more than chance does at ``level``."""
        return self.change < 0 and self.chance < level

    def rose(self, level: float) -> bool:
        """Return whether it is more than before, by more than chance does at ``level``."""
        return self.change > 0 and self.chance < level

    @property
    def in_words(self) -> str:
        """Return "instructions kept 0.30 to 0.85 (p < 0.001)"."""
        chance = "p < 0.001" if self.chance < 0.001 else f"p = {self.chance:.2g}"
        return f"{self.label} {self.before:.2f} to {self.after:.2f} ({chance})"


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


def accuracy_outcome(label: str, before: float, after: float, num_pairs: int) -> Outcome:
    """Return the outcome of a share of ``num_pairs`` pairs. Before training it is one half by definition where rewards are
    measured against the start itself; else both shares come from samples."""
    if before == 0.5:
        wins = round(after * num_pairs)
        return Outcome(label, before, after, sign_test(wins, num_pairs - wins))
    variance = sum(share * (1 - share) / max(1, num_pairs) for share in (before, after))
    return measured_outcome(label, before, after, math.sqrt(variance))


def measured_outcome(label: str, before: float, after: float, stderr: float) -> Outcome:
    """Return the outcome of two means whose difference has the standard error ``stderr``, by the normal distribution."""
    chance = math.erfc(abs(after - before) / stderr / math.sqrt(2)) if stderr > 0 else 1.0
    return Outcome(label, before, after, chance)


def sign_test(gained: int, lost: int) -> float:
    """Return the two-sided p-value of so many changes for the better and the worse, each as likely as the other."""
    changed = gained + lost
    if changed > EXACT_UNTIL:
        return math.erfc((abs(gained - lost) - 1) / math.sqrt(2 * changed))  # with Yates's correction
    tail = sum(math.comb(changed, count) for count in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**changed)
