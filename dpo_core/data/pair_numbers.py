"""A pair's numbers of its own: its weight and its target margin, from the columns that a source names for them."""

import math
from typing import Any

from dpo_core.contract.drops import DropReason, FormatName, RowDropped

LARGEST_NUMBER = 1e6  # of a weight or a margin; a larger one is rather an identifier or a time
SMALLEST_WEIGHT = 1e-6
NO_WEIGHT, NO_MARGIN = 1.0, math.nan  # of a row whose source names no such column


def pair_numbers(raw: Any, columns: dict[str, str], format: FormatName) -> tuple[float, float]:
    """Return a raw row's weight and margin. Raises ``RowDropped`` for one that is no number from 0 on, and for weight 0."""
    weight = (
        NO_WEIGHT if "weight" not in columns else _number(raw.get(columns["weight"]), "bad_weight", format)
    )
    if weight == 0:
        raise RowDropped("zero_weight", format=format)
    if weight < SMALLEST_WEIGHT:
        raise RowDropped("bad_weight", f"{weight:g} is too small", format)
    margin = (
        NO_MARGIN if "margin" not in columns else _number(raw.get(columns["margin"]), "bad_margin", format)
    )
    return weight, margin


def _number(value: Any, reason: DropReason, format: FormatName) -> float:
    """The value as a number; text of one will do, as decimals of columnar files are kept as text."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number <= LARGEST_NUMBER:  # neither is NaN
        raise RowDropped(reason, f"{str(value)[:40]!r}", format)
    return number
