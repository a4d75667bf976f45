"""How many rows and tokens a source has, as far as a plan may look: local JSON alone, and not too much of it."""

import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from dpo_core.contract.amount import is_count, num_selected
from dpo_core.contract.regular_file import TooLong, opened
from dpo_core.contract.source_config import DataSource

CHARACTERS_PER_TOKEN = 4.0
BIGGEST_FILE_READ_BYTES = 200_000_000
ROWS_COMPARED = 20_000  # of JSON lines; about a second
LONGEST_COMPARED_BYTES = 1 << 20  # its values may take twenty times as much
MOST_ROWS_READ = 1_000_000  # five seconds
READ_CHARACTERS, LONGEST_ELEMENT_CHARACTERS = 1 << 20, 16 << 20

_BLANKS = re.compile(r"\s*")


@dataclass(frozen=True, slots=True)
class SourceSize:
    """Rows that a source gives and tokens in them (chosen and rejected, prompt in both); None where it is not known."""

    label: str
    amount: str
    rows: int | None
    tokens: int | None
    available: int | None = None  # rows that the source has
    long_fraction: float = 0.0  # about how many of them are longer than the bound asked for
    longer_chosen: int = 0  # of the first rows, in characters
    longer_rejected: int = 0


@dataclass(slots=True)
class _Counted:
    """What rows come to. ``bound``: the characters from which one is long; ``columns``: ours -> theirs."""

    bound: float
    columns: dict[str, str]
    rows: int = 0
    characters: int = 0
    num_long: int = 0
    longer_chosen: int = 0
    longer_rejected: int = 0

    def add(self, length: int) -> None:
        if self.rows == MOST_ROWS_READ:
            raise TooLong(f"has more than {MOST_ROWS_READ:,} rows")
        self.rows += 1
        self.characters += length
        self.num_long += length > self.bound

    def compare(self, row: Any) -> None:
        """Compare the sides of a row as they stand there: a prompt in them stands in both."""
        if not isinstance(row, dict):
            return
        chosen, rejected = (
            _characters(row.get(self.columns.get(side, side))) for side in ("chosen", "rejected")
        )
        if chosen and rejected:
            self.longer_chosen += chosen > rejected
            self.longer_rejected += rejected > chosen


def _characters(answer: Any) -> int:
    """Characters of a text, or of what the messages of a list say."""
    if isinstance(answer, str):
        return len(answer)
    messages = answer if isinstance(answer, list) else [answer]
    texts = (
        message.get("content") or message.get("value") for message in messages if isinstance(message, dict)
    )
    return sum(len(text) for text in texts if isinstance(text, str))


def source_size(source: DataSource, max_length_tokens: int | None = None) -> SourceSize:
    """Return rows and tokens after ``amount``; counted in local JSON, told from nothing else."""
    bound = 2 * CHARACTERS_PER_TOKEN * (max_length_tokens or float("inf"))  # a row has two sides
    found = _counted(Path(source.source).expanduser(), _Counted(bound, source.columns))
    if found is None:
        chosen = num_selected(source.amount, 0) if is_count(source.amount) else None
        return SourceSize(source.source, source.amount, chosen, None)
    chosen = num_selected(source.amount, found.rows)
    tokens = int(found.characters / CHARACTERS_PER_TOKEN * chosen / found.rows) if found.rows else None
    return SourceSize(
        source.source,
        source.amount,
        chosen,
        tokens,
        found.rows,
        long_fraction=found.num_long / max(1, found.rows),
        longer_chosen=found.longer_chosen,
        longer_rejected=found.longer_rejected,
    )


def _counted(path: Path, found: _Counted) -> _Counted | None:
    """Count the rows of ``path``. None for what holds no JSON, cannot be read, or is more, unpacked, than is read for a
    plan."""
    if not path.name.endswith((".jsonl", ".jsonl.gz", ".json")):
        return None
    try:
        with opened(path) as packed:
            if os.fstat(packed.fileno()).st_size > BIGGEST_FILE_READ_BYTES:
                return None
            if path.suffix == ".json":
                for row in _elements(io.TextIOWrapper(packed, encoding="utf-8")):
                    found.add(len(json.dumps(row)))
                    found.compare(row)
                return found
            with gzip.open(packed) if path.suffix == ".gz" else packed as file:
                for line in _lines(file):
                    if line.lstrip()[:1] == b"[":  # an array: its rows are not its lines
                        return None
                    if line.strip():
                        found.add(len(line.decode(errors="replace")))
                        is_looked_at = found.rows <= ROWS_COMPARED and len(line) <= LONGEST_COMPARED_BYTES
                        if is_looked_at and not _is_compared(found, line):
                            return None
                return found
    except (OSError, EOFError, zlib.error, ValueError, RecursionError):
        return None


def _is_compared(found: _Counted, line: bytes) -> bool:
    """Compare the sides of the row that a line is. False for a line that is no whole value: rows may be objects over many
    lines, or several on one, which only the run tells apart."""
    try:
        found.compare(json.loads(line))
    except json.JSONDecodeError:
        return False
    except (
        ValueError,
        RecursionError,
    ):  # of a column that nobody reads, maybe; the run will say what is no row
        pass
    return True


def _lines(file: BinaryIO | gzip.GzipFile) -> Iterator[bytes]:
    """The lines of ``file``. Raises ``TooLong``."""
    left = BIGGEST_FILE_READ_BYTES
    while line := file.readline(left + 1):
        left -= len(line)
        if left < 0:
            raise TooLong(f"is longer than {BIGGEST_FILE_READ_BYTES:,} bytes")
        yield line


def _elements(file: TextIO) -> Iterator[Any]:
    """The elements of the one array in ``file``, one at a time, as ``[],`` takes twenty times its length. Raises
    ``ValueError`` for anything else."""
    decoder, place, expected = json.JSONDecoder(), 0, "["
    text = file.read(READ_CHARACTERS)
    while True:
        place = _end_of_blanks(text, place)
        mark = text[place : place + 1]
        if mark == "]" and expected != "[":
            if (text[place + 1 :] + file.read(READ_CHARACTERS)).strip():
                raise ValueError("something stands behind the array")
            return
        if mark and expected:
            if mark not in expected:
                raise ValueError(f"{expected!r} is expected")
            place, expected = place + 1, ""
            continue
        try:
            value, place = decoder.raw_decode(text, place)
            expected = ","
        except ValueError:
            text, place = text[place:], 0
            more = file.read(max(READ_CHARACTERS, len(text)))
            if not more or len(text) > LONGEST_ELEMENT_CHARACTERS:
                raise
            text += more
            continue
        yield value


def _end_of_blanks(text: str, place: int) -> int:
    found = _BLANKS.match(text, place)
    assert found is not None  # as none is enough
    return found.end()
