"""Messages as text in Python's spelling, ``[{'role': 'user', 'content': 'Hi?'}]``: what becomes of lists in a table of text.

Without a comma between two objects it is numpy's, as pandas writes columns of Parquet files into CSV.
"""

import ast
import re
from typing import Any

MAX_CHARACTERS = 1 << 20
_BEGINS = re.compile(r"\s*\[?\s*\{\s*(['\"])(?:role|from|content|value|text)\1\s*:")
_NUMPY = re.compile(r"\}[ \t]*\n[ \t]*\{")  # no text in Python's spelling holds a line break


def of_python_text(text: str) -> Any:
    """Return the list or the object that a text is, and ``text`` itself if it is none of messages."""
    if _BEGINS.match(text) is None or len(text) > MAX_CHARACTERS:
        return text
    try:
        return ast.literal_eval(_NUMPY.sub("}, {", text.strip()))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text
