"""How often the longer answer is the chosen one: what a model learns from preferences without reading them.

Where it is often so, a policy learns to write longer answers (Singhal et al., A Long Way to Go, arXiv 2310.03716).
"""

from collections.abc import Iterable
from typing import Protocol

FEWEST_PAIRS = 100  # of unequal lengths; below, 60 % may well be chance
BIASED_SHARE = 0.6  # or as little as the rest of it


class Compared(Protocol):
    """A source whose pairs were compared: a ledger's, or a plan's first rows."""

    @property
    def label(self) -> str: ...

    @property
    def longer_chosen(self) -> int: ...

    @property
    def longer_rejected(self) -> int: ...


def longer_is_chosen(ledgers: Iterable[Compared]) -> tuple[float | None, int]:
    """Return the share of the pairs of unequal length whose longer answer is the chosen one, in tokens, and how many such
    pairs there are; no share of no pairs (mixtures made before this was counted have none)."""
    ledgers = tuple(ledgers)
    chosen = sum(ledger.longer_chosen for ledger in ledgers)
    pairs = chosen + sum(ledger.longer_rejected for ledger in ledgers)
    return (chosen / pairs if pairs else None), pairs


def length_bias_warning(ledgers: Iterable[Compared]) -> str | None:
    """Return what to do about a length bias, overall or in a source; None where there is none to speak of."""
    ledgers = tuple(ledgers)
    named = [("all sources", ledgers), *((ledger.label, (ledger,)) for ledger in ledgers)]
    biased = []
    for name, part in named if len(ledgers) > 1 else [(ledger.label, (ledger,)) for ledger in ledgers]:
        share, pairs = longer_is_chosen(part)
        if share is not None and pairs >= FEWEST_PAIRS and not 1 - BIASED_SHARE < share < BIASED_SHARE:
            biased.append(f"{share:.0%} of {pairs:,} pairs ({name})".replace("%", " %"))
    if not biased:
        return None
    return (
        f"Length bias: the longer answer is the chosen one in {', '.join(biased)}. A policy can learn length instead of "
        "quality from that. Look at answers/mean_words of the evaluation; a loss that divides by length (dpo_norm, simpo) "
        "or loss.ld_alpha below 1 weakens it, gate.length_ratio_at_most bounds it."
    )
