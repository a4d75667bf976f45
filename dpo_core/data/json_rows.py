"""Rows of JSON text, to the end of the file: lines, arrays, objects over many lines, in any order and number.

A line that is a whole value is parsed by itself. From the first line on that is none, or begins an array, the rest of
the file is taken for a sequence of values whatever their line breaks, and arrays give their elements. So files that
were put together (``cat a.json b.json``), arrays as lines and pretty-printed objects lose nothing, and what is no JSON
is an error that names its line. Memory is flat in the rows.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO

from dpo_core.contract.errors import DataError

READ_CHARACTERS = 1 << 20
MAX_ROW_CHARACTERS = 64 << 20  # a few kB packed can be a line of gigabytes
MAX_OBJECT_CHARACTERS = 512 << 20
WRAPPERS = ("data", "rows", "train", "examples", "instances")  # {"data": [...]} instead of [...]
# Beside JSON's own: marks that editors and Windows leave at the beginning of files, RFC 7464's record separator.
BLANKS = " \t\r\n\ufeff\x1e"
SHORTEST_CERTAIN = 16  # characters behind an error that no cut-off token explains: "-Infinity", "\\u00e9"

_DECODER = json.JSONDecoder()
_BLANKS = re.compile(f"[{BLANKS}]*")
_BETWEEN = re.compile(f"[,{BLANKS}]*")
_TOKEN = re.compile(r'[^"\[\]{}]+|"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


class RawRow(NamedTuple):
    """A row's value, and its JSON text where the file holds one that can be kept as it is."""

    value: Any
    text: str | None = None


def json_rows(path: Path, file: TextIO) -> Iterator[RawRow]:
    """Yield the rows of ``file``, which is that of ``path``. Raises ``DataError`` where it is no JSON."""
    is_document = path.name.removesuffix(".gz").endswith(".json")
    number = 0
    while line := file.readline(min(READ_CHARACTERS, MAX_ROW_CHARACTERS)):
        number += 1
        text = line.strip(BLANKS)
        if not text:
            continue
        if text[0] == "[":
            yield from _Values(path, file, line, number).rows()
            return
        if not line.endswith("\n"):
            line += file.readline(max(MAX_ROW_CHARACTERS - len(line), 0))
            text = line.strip(BLANKS)
        is_cut = len(line) >= MAX_ROW_CHARACTERS and not line.endswith("\n")
        if is_cut and not (is_document and number == 1):
            while (rest := file.readline(MAX_ROW_CHARACTERS)) and not rest.endswith("\n"):
                pass
            yield RawRow(None)  # it is counted, and dropped as no preference row
            continue
        row = None if is_cut else _row_of_line(text)
        if row is None or (is_document and number == 1 and _wrapped(path, row.value) is not None):
            yield from _Values(path, file, line, number).rows()
            return
        yield row


def _row_of_line(text: str) -> RawRow | None:
    """The row that a line is; None for one that is not one whole value."""
    try:
        value = json.loads(text)
    except RecursionError:  # as one that is too long
        return RawRow(None)
    except ValueError:
        return None
    # An escape may stand for half a character, which no UTF-8 text can hold.
    return RawRow(value, None if "\\u" in text else text)


def _wrapped(path: Path, value: Any) -> list | None:
    """The rows in an object that wraps them, None for an object that is a row itself. Raises ``DataError``."""
    if not isinstance(value, dict) or "chosen" in value or "rejected" in value:
        return None
    found = [key for key in WRAPPERS if isinstance(value.get(key), list)]
    if len(found) > 1:
        raise DataError(
            f"{path} is one object with several lists of rows, {' and '.join(found)}. Write the rows that you "
            "want as JSON lines (.jsonl)."
        )
    return value[found[0]] if found else None


class _Values:
    """What is left of a file, as a sequence of JSON values. ``buffer`` slides over it."""

    def __init__(self, path: Path, file: TextIO, buffer: str, line: int) -> None:
        self.path, self.file, self.buffer, self.line = path, file, buffer, line
        self.position, self.ended = 0, False
        self.is_document = path.name.removesuffix(".gz").endswith(".json")
        self.element: int | None = None  # number of the array's element that is being read

    def rows(self) -> Iterator[RawRow]:
        """Every value to the end of the file, arrays element by element."""
        is_first = self.is_document and self.line == 1
        while first := self._next(_BLANKS):
            if first == "[":
                yield from map(RawRow, self._elements())
                continue
            start = self.position
            value = self._value(MAX_OBJECT_CHARACTERS if is_first else MAX_ROW_CHARACTERS)
            length = self.position - start
            rows = _wrapped(self.path, value) if is_first and not self._next(_BLANKS) else None
            if rows is None:
                yield RawRow(value if length <= MAX_ROW_CHARACTERS else None)
            else:
                yield from map(RawRow, rows)
            is_first = False

    def _elements(self) -> Iterator[Any]:
        self.position += 1
        self.element = 0
        while (first := self._next(_BETWEEN)) != "]":
            if not first:
                self._fail("the file ends", "")
            yield self._value(MAX_ROW_CHARACTERS)
            self.element += 1
        self.position += 1
        self.element = None

    def _next(self, skipped: re.Pattern[str]) -> str:
        """The next character behind ``skipped`` ones, "" at the end of the file."""
        while True:
            found = skipped.match(self.buffer, self.position)
            assert found is not None
            self.position = found.end()
            if self.position < len(self.buffer):
                return self.buffer[self.position]
            if self.ended:
                return ""
            self._fill()

    def _fill(self) -> None:
        """Read on. A value that is longer than what was read is met again in twice as much."""
        kept = len(self.buffer) - self.position
        block = self.file.read(max(READ_CHARACTERS, kept))
        self.line += self.buffer.count("\n", 0, self.position)
        self.buffer, self.position, self.ended = self.buffer[self.position :] + block, 0, not block

    def _value(self, limit: int) -> Any:
        """The value that begins here; None for one that is nested too deeply to be a row."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.buffer, self.position)
                # A number at the buffer's end may go on in the next block: "-0", ".", "5".
                if self.ended or (end < len(self.buffer) and self.buffer[end] not in ".eE"):
                    self.position = end
                    return value
            except RecursionError:
                return self._skip()
            except ValueError as error:
                if self.ended or self._is_certain(error):
                    self._fail(getattr(error, "msg", str(error)), error)
            if len(self.buffer) - self.position > limit:
                self._refuse_length(limit)
            self._fill()

    def _is_certain(self, error: ValueError) -> bool:
        """Return whether reading on cannot mend it."""
        if not isinstance(error, json.JSONDecodeError) or error.msg.startswith("Invalid control character"):
            return True
        return (
            not error.msg.startswith("Unterminated string")
            and error.pos < len(self.buffer) - SHORTEST_CERTAIN
        )

    def _skip(self) -> None:
        """Pass a value by, by its brackets."""
        depth = 0
        while True:
            found = _TOKEN.match(self.buffer, self.position)
            if found is None:
                if self.ended:
                    self._fail("a bracket is not closed", "")
                if len(self.buffer) - self.position > MAX_ROW_CHARACTERS:
                    self._refuse_length(MAX_ROW_CHARACTERS)
                self._fill()
                continue
            self.position = found.end()
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
            if not depth:
                return

    def _refuse_length(self, limit: int) -> NoReturn:
        if self.element is not None:
            raise DataError(
                f"{self.path}: element {self.element} is longer than {limit >> 20} Mi characters, which no row "
                "is. Remove it."
            )
        raise DataError(
            f"{self.path} line {self._line()} begins one JSON object of more than {limit >> 20} Mi characters, "
            "which is read whole. Write its rows as JSON lines (.jsonl)."
        )

    def _fail(self, reason: str, cause: ValueError | str) -> NoReturn:
        begin = self.buffer[self.position :].lstrip(BLANKS)
        line = begin.partition("\n")[0]
        where = (
            f"line {self._line()} is no complete JSON value ({reason})"
            if self.element is None
            else f"is no complete JSON array: it breaks in element {self.element} on line {self._line()} ({reason})"
        )
        raise DataError(
            f"{self.path} {where}; what stands there starts with {line[:60]!r} and ends with "
            f"{line.rstrip()[-30:]!r}. The file is cut off or damaged: write it again or remove what is no JSON."
        ) from (cause if isinstance(cause, Exception) else None)

    def _line(self) -> int:
        return self.line + self.buffer.count("\n", 0, self.position)
