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
from typing import Any, NoReturn, TextIO

from dpo_core.contract.errors import DataError
from dpo_core.data.deep_json import TOKEN, end_of_brackets, members_of
from dpo_core.data.json_line import DECODER, QUICK, RawRow, row_of_line
from dpo_core.data.json_wrappers import (
    WRAPPERS,
    WRAPS,
    first_object,
    may_wrap,
    require_one_list,
    surely_wrapped,
    wrapped_rows,
)
from dpo_core.data.repeated_names import RepeatedName

READ_CHARACTERS = 1 << 20
MAX_ROW_CHARACTERS = 64 << 20  # a few kB packed can be a line of gigabytes
MAX_WHOLE_CHARACTERS = 4 << 20  # of an object that may wrap all rows; ``[],`` takes twenty times its length
# Beside JSON's own: marks that editors and Windows leave at the beginning of files, RFC 7464's record separator.
BLANKS = " \t\r\n\ufeff\x1e"
LONG = object()
SHORTEST_CERTAIN = 16  # characters behind an error that no cut-off token explains: "-Infinity", "\\u00e9"

_BLANKS = re.compile(f"[{BLANKS}]*")
_BETWEEN = re.compile(f"[,{BLANKS}]*")


def json_rows(path: Path, file: TextIO) -> Iterator[RawRow]:
    """Yield the rows of ``file``, which is that of ``path``. Raises ``DataError`` where it is no JSON."""
    is_document = path.name.removesuffix(".gz").endswith(".json")
    number = 0
    while line := file.readline(min(READ_CHARACTERS, MAX_ROW_CHARACTERS)):
        number += 1
        text = line.strip(BLANKS)
        if not text:
            continue
        if text[0] == "[" or (is_document and number == 1 and len(line) >= READ_CHARACTERS):
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
        is_wrapper = is_document and number == 1 and WRAPS.match(text) is not None
        row = None if is_cut or is_wrapper else row_of_line(text)
        if row is None or (is_document and number == 1 and may_wrap(path, row.value)):
            yield from _Values(path, file, line, number).rows()
            return
        if (rows := surely_wrapped(path, row.value)) is None:
            yield row
        else:
            yield from map(RawRow, rows)


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
            is_wrapper = is_first and first == "{"
            value = self._value(MAX_WHOLE_CHARACTERS if is_wrapper else MAX_ROW_CHARACTERS, is_wrapper)
            if value is LONG:
                yield from map(RawRow, self._members())
                return
            row = value if self.position - start <= MAX_ROW_CHARACTERS else None
            is_all = is_wrapper and not self._next(_BLANKS)
            rows = (wrapped_rows if is_all else surely_wrapped)(self.path, value)
            yield from map(RawRow, [row] if rows is None else rows)
            is_first = False

    def _members(self) -> Iterator[Any]:
        """The rows in the object that begins here, which is longer than a row and wraps all rows, member by member."""
        self.position += 1
        wrappers: list[str] = []
        firsts: dict[str, dict] = {}  # of the lists
        while (first := self._next(_BETWEEN)) != "}":
            key = self._value(MAX_ROW_CHARACTERS) if first == '"' else self._fail("a name is expected", "")
            if self._next(_BLANKS) != ":":
                self._fail("a colon is expected", "")
            self.position += 1
            if self._next(_BLANKS) == "[" and key in WRAPPERS:
                wrappers.append(key)
                for number, row in enumerate(self._elements()):
                    if not number:
                        firsts[key] = first_object([row])
                    yield row
            else:
                firsts[key] = first_object(self._value(MAX_ROW_CHARACTERS))
            if key in ("chosen", "rejected") or len(wrappers) > 1:
                break
        require_one_list(self.path, wrappers, firsts)
        self.position += 1
        if first != "}" or len(wrappers) != 1 or self._next(_BLANKS):
            raise DataError(
                f"{self.path} begins with an object that is too long for a row (more than {MAX_WHOLE_CHARACTERS >> 20} Mi "
                "characters) or gives a name several values, and that does not wrap all rows of the file in one list "
                f"({', '.join(WRAPPERS)}). Write its rows as JSON lines (.jsonl)."
            )

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

    def _value(self, limit: int, is_wrapper: bool = False) -> Any:
        """The value that begins here; None for one that is nested too deeply to be a row. ``is_wrapper``: it may be longer
        than the limit, which ``LONG`` says."""
        while True:
            try:
                value, end = self._decoded()
                # A number at the buffer's end may go on in the next block: "-0", ".", "5".
                if self.ended or (end < len(self.buffer) and self.buffer[end] not in ".eE"):
                    self.position = end
                    return value
            except (RecursionError, RepeatedName):
                if not is_wrapper:
                    return members_of(self._skip(), DECODER)
                end = end_of_brackets(self.buffer, self.position)
                if end < len(self.buffer) or self.ended:
                    found = members_of(self.buffer[self.position : end], DECODER)
                    return LONG if may_wrap(self.path, found) else members_of(self._skip(), DECODER)
            except ValueError as error:
                if self.ended or self._is_certain(error):
                    self._fail(getattr(error, "msg", str(error)), error)
            if len(self.buffer) - self.position > limit:
                if is_wrapper:
                    return LONG
                self._refuse_length(limit)
            self._fill()

    def _decoded(self) -> tuple[Any, int]:
        """The value that begins here, and where it ends."""
        try:
            return QUICK.raw_decode(self.buffer, self.position)
        except (json.JSONDecodeError, RepeatedName):
            raise
        except ValueError:
            return DECODER.raw_decode(self.buffer, self.position)

    def _is_certain(self, error: ValueError) -> bool:
        """Return whether reading on cannot mend it."""
        if not isinstance(error, json.JSONDecodeError) or error.msg.startswith("Invalid control character"):
            return True
        return (
            not error.msg.startswith("Unterminated string")
            and error.pos < len(self.buffer) - SHORTEST_CERTAIN
        )

    def _skip(self) -> str:
        """Pass a value by, by its brackets. -> its text, if it is no longer than a row may be"""
        depth, pieces, length = 0, [], 0
        while True:
            found = TOKEN.match(self.buffer, self.position)
            if found is None:
                if self.ended:
                    self._fail("a bracket is not closed", "")
                if len(self.buffer) - self.position > MAX_ROW_CHARACTERS:
                    self._refuse_length(MAX_ROW_CHARACTERS)
                self._fill()
                continue
            self.position = found.end()
            length += len(found[0])
            if length <= MAX_ROW_CHARACTERS:
                pieces.append(found[0])
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
            if not depth:
                return "".join(pieces)

    def _refuse_length(self, limit: int) -> NoReturn:
        if self.element is not None:
            raise DataError(
                f"{self.path}: element {self.element} is longer than {limit >> 20} Mi characters, which no row "
                "is. Remove it."
            )
        raise DataError(
            f"{self.path} line {self._line()} begins one JSON object of more than {limit >> 20} Mi characters, "
            "which no row is. Write its rows as JSON lines (.jsonl)."
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
