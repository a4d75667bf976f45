"""What can be read of an object that is nested deeper than the parser follows, or gives a name several values: its
members, one by one.

The bad one may be a column that nobody reads. What is deep itself is given as ``TOO_DEEP``, what cannot be told as
``SEVERAL_VALUES``, so that it is not taken for something that is not there.
"""

import json
import mmap
import re
from pathlib import Path
from typing import Any, Final

from dpo_core.data.repeated_names import SEVERAL_VALUES, RepeatedName, marked

BLANKS = re.compile(r"[ \t\r\n]*")
TOKEN = re.compile(r'[^"\[\]{}]+|"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
OPENS, CLOSES = "[{", "]}"
TEXT_OR_BRACKET = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
# Stands for a value that was not read. It is JSON, as rows are text on their way, and no text, list, number or null.
TOO_DEEP: Final = {"nested deeper than a parser follows": True}


def members_of(text: str, decoder: json.JSONDecoder) -> dict[str, Any] | None:
    """Return the members of the JSON object in ``text``, marked where they cannot be read; None if it is no whole object."""
    members: list[tuple[str, Any]] = []
    place = _past(text, 0, "{")
    while place is not None and text[place : place + 1] == '"':
        try:
            name, end = decoder.raw_decode(text, place)
        except ValueError:
            return None
        colon = _past(text, end, ":")
        if colon is None:
            return None
        try:
            value, end = decoder.raw_decode(text, colon)
        except RecursionError:
            value, end = TOO_DEEP, end_of_brackets(text, colon)
        except RepeatedName:
            value, end = SEVERAL_VALUES, end_of_brackets(text, colon)
        except ValueError:
            return None
        members.append((name, value))
        if (comma := _past(text, end, ",")) is None:
            return marked(members) if _past(text, end, "}") == len(text) else None
        place = comma
    return None


def _past(text: str, place: int, mark: str) -> int | None:
    """The place behind ``mark`` and the blanks around it; None if it does not stand there."""
    found = BLANKS.match(text, place)
    assert found is not None
    place = found.end()
    if text[place : place + 1] != mark:
        return None
    behind = BLANKS.match(text, place + 1)
    assert behind is not None
    return behind.end()


def end_of_brackets(text: str, place: int) -> int:
    """Return the place behind the value that opens at ``place``, by its brackets; the text's end if it is not closed."""
    depth = 0
    while found := TOKEN.match(text, place):
        place = found.end()
        depth += (found[0] in OPENS) - (found[0] in CLOSES) if len(found[0]) == 1 else 0
        if not depth:
            return place
    return len(text)


def is_deeper(file: Path, limit: int) -> bool:
    """Return whether brackets of a file of JSON lie more than ``limit`` deep in each other."""
    if not file.stat().st_size:
        return False
    depth = 0
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for found in TEXT_OR_BRACKET.finditer(content):
            mark = found[0]
            if mark in (b"[", b"{"):
                depth += 1
                if depth > limit:
                    return True
            elif len(mark) == 1:
                depth -= 1
    return False
