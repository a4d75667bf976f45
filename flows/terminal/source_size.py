"""How many rows and tokens a source has, as far as a plan may look: local JSON alone, and not too much of it."""

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dpo_core.contract.amount import is_count, num_selected
from dpo_core.contract.config import DataSource
from dpo_core.contract.regular_file import TooLong, opened

CHARACTERS_PER_TOKEN = 4.0
BIGGEST_FILE_READ_BYTES = 200_000_000


@dataclass(frozen=True, slots=True)
class SourceSize:
    """Rows that a source gives and tokens in them (chosen and rejected, prompt in both); None where it is not known."""

    label: str
    amount: str
    rows: int | None
    tokens: int | None
    available: int | None = None  # rows that the source has
    long_fraction: float = 0.0  # about how many of them are longer than the bound asked for


def source_size(source: DataSource, max_length_tokens: int | None = None) -> SourceSize:
    """Return rows and tokens after ``amount``; counted in local JSON lines, told from nothing else."""
    path = Path(source.source).expanduser()
    lengths = _row_lengths(path)
    rows, characters = (None, 0) if lengths is None else (len(lengths), sum(lengths))
    chosen = num_selected(source.amount, rows or 0) if is_count(source.amount) or rows is not None else None
    tokens = None if not rows or chosen is None else int(characters / CHARACTERS_PER_TOKEN * chosen / rows)
    bound = 2 * CHARACTERS_PER_TOKEN * (max_length_tokens or float("inf"))  # a row has two sides
    num_long = sum(length > bound for length in lengths or ())
    return SourceSize(source.source, source.amount, chosen, tokens, rows, num_long / max(1, rows or 0))


def _row_lengths(path: Path) -> list[int] | None:
    """Characters of each row, about. None for what holds no JSON, cannot be read, or is longer, unpacked, than is read for a
    plan."""
    if not path.name.endswith((".jsonl", ".jsonl.gz", ".json")):
        return None
    try:
        with opened(path) as packed:
            if os.fstat(packed.fileno()).st_size > BIGGEST_FILE_READ_BYTES:
                return None
            if path.suffix == ".json":
                rows = json.load(packed)
                return [len(json.dumps(row)) for row in rows] if isinstance(rows, list) else None
            with gzip.open(packed) if path.suffix == ".gz" else packed as file:
                lengths = []
                for line in _lines(file):
                    if line.lstrip()[:1] == b"[":  # an array: its rows are not its lines
                        return None
                    if line.strip():
                        lengths.append(len(line.decode(errors="replace")))
                return lengths
    except (OSError, EOFError, zlib.error, ValueError, RecursionError):
        return None


def _lines(file: BinaryIO | gzip.GzipFile) -> Iterator[bytes]:
    """The lines of ``file``. Raises ``TooLong``."""
    left = BIGGEST_FILE_READ_BYTES
    while line := file.readline(left + 1):
        left -= len(line)
        if left < 0:
            raise TooLong(f"is longer than {BIGGEST_FILE_READ_BYTES:,} bytes")
        yield line
