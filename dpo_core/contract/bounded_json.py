"""JSON that others wrote, parsed if it is no more values than a file of its kind holds.

``[],`` and ``{"":0},`` take twenty to thirty times their length as Python values, so a bound of bytes alone lets 64 MB be
gigabytes.
"""

import json
from typing import Any

from dpo_core.contract.regular_file import TooLong

MARKS = b",[{"  # one before each value but the first; in texts they count, too
MAX_MARKS = 4_000_000  # a tokenizer of 256 000 entries and as many merges has under 2 million; at most 0.5 GB


def bounded_json(raw: bytes) -> Any:
    """Return the value. Raises ``TooLong``, ``ValueError`` for what is no JSON, and ``RecursionError``."""
    if len(raw) > MAX_MARKS and sum(raw.count(mark) for mark in MARKS) > MAX_MARKS:
        raise TooLong(f"holds more than {MAX_MARKS:,} values")
    return json.loads(raw)
