"""The row of one line of JSON, whatever stands in columns that nobody reads: numbers of thousands of digits, brackets deeper
than the parser follows, names with several values."""

import json
from typing import Any, NamedTuple

from dpo_core.data.deep_json import members_of
from dpo_core.data.repeated_names import RepeatedName, once


def _whole_number(digits: str) -> int | str:
    """The number; one of thousands of digits, which Python takes no time for, as its text."""
    try:
        return int(digits)
    except ValueError:
        return digits


DECODER = json.JSONDecoder(parse_int=_whole_number, object_pairs_hook=once)
QUICK = json.JSONDecoder(object_pairs_hook=once)  # numbers are made in C


class RawRow(NamedTuple):
    """A row's value, and its JSON text where the file holds one that can be kept as it is."""

    value: Any
    text: str | None = None
    unread: tuple[str, ...] = ()  # columns that the file has, too, and that nobody asked for


def row_of_line(text: str) -> RawRow | None:
    """Return the row that a line is; None for one that is not one whole value."""
    try:
        value = QUICK.decode(text)
    except json.JSONDecodeError:
        return None
    except (ValueError, RecursionError):  # of a column that nobody reads, maybe
        return _hard_row(text)
    return RawRow(value, text)


def _hard_row(text: str) -> RawRow | None:
    """The row of a line with a number of thousands of digits, with a name of several values, or that is too deep."""
    try:
        return RawRow(DECODER.decode(text))
    except json.JSONDecodeError:
        return None
    except (RepeatedName, RecursionError):
        return RawRow(members_of(text, DECODER))
