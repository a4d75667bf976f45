"""How much of a set is meant: open-instruct's mixer amount, as text, and what it comes to of a number of rows."""

import re
from typing import Annotated

from pydantic import BeforeValidator, StringConstraints

AMOUNT_PATTERN = r"^([0-9]{1,12}|[0-9]{0,12}\.[0-9]{1,24}|[0-9]{1,12}\.)$"
MOST_TIMES = 1000  # of a whole set; 1.0e+6 is meant as rows, and YAML makes 1000000.0 of it


def _as_text(value: object) -> object:
    """YAML and Python may give 0.5 or 100; a browser's form would turn 1.0 into 1, so amounts are text from here on."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return value
    text = str(value) if not isinstance(value, int) or value.bit_length() <= 64 else "a number beyond 64 bits"
    if not re.fullmatch(AMOUNT_PATTERN, text):
        raise ValueError(
            f"{text[:40]!r} is no amount; expected a proportion with a dot (0.5, 1.0, 3.0) or a number of rows without one "
            "(100)"
        )
    if not is_count(text) and float(text) > MOST_TIMES:
        raise ValueError(
            f"{text} has a dot, so it is a proportion, and more than {MOST_TIMES:,} times the set; write "
            f"{text.partition('.')[0]} for that many rows"
        )
    return text


Amount = Annotated[str, StringConstraints(pattern=AMOUNT_PATTERN), BeforeValidator(_as_text)]
"""With a "." a proportion of the split ("0.5" = half, "3.0" = three times), without one a count of rows ("100")."""


def is_count(amount: str) -> bool:
    """Return whether the amount says by itself how many rows it means."""
    return "." not in amount


def num_selected(amount: str, num_rows: int) -> int:
    """Return rows that ``amount`` asks for: with a "." a proportion of ``num_rows`` (rounded down), else a count."""
    return int(amount) if is_count(amount) else int(float(amount) * num_rows)


def num_held_out(amount: str, num_prompts: int) -> int:
    """Return prompts to hold out of ``num_prompts``. A proportion above 0 holds out at least one where there are
    several.
    """
    fewest = 1 if not is_count(amount) and float(amount) > 0 and num_prompts > 1 else 0
    return max(num_selected(amount, num_prompts), fewest)
