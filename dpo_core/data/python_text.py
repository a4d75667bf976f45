"""Lists as text in Python's spelling, ``[{'role': 'user', 'content': 'Hi?'}]``: what becomes of them in a table of text.

Without a comma between two objects it is numpy's, as pandas writes columns of Parquet files into CSV.
"""

import ast
import re
from typing import Any

MAX_CHARACTERS = 1 << 20
_BEGINS = re.compile(r"\s*\[?\s*\{\s*(['\"])(?:role|from|content|value|text)\1\s*:")
_NO_PYTHON = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError)
_NUMPY = re.compile(r"\}[ \t]*\n[ \t]*\{")  # no text in Python's spelling holds a line break


def python_list(text: str) -> list | None:
    """Return the list that a text is in Python's spelling, of numbers also in numpy's, ``[0.1 0.9]``; None if it is none."""
    text = text.strip()
    if text[:1] + text[-1:] not in ("[]", "()") or len(text) > MAX_CHARACTERS:
        return None
    try:
        found = ast.literal_eval(_NUMPY.sub("}, {", text))
    except _NO_PYTHON:
        try:
            found = list(map(float, text[1:-1].split()))
        except ValueError:
            return None
    return list(found) if isinstance(found, list | tuple) else None


def of_python_text(text: str) -> Any:
    """Return the list or the object that a text is, and ``text`` itself if it is none of messages."""
    if _BEGINS.match(text) is None or len(text) > MAX_CHARACTERS:
        return text
    try:
        return ast.literal_eval(_NUMPY.sub("}, {", text.strip()))
    except _NO_PYTHON:
        return text
