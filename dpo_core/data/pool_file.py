"""How the pool of converted rows lies on disk while the mixture is made: facts as Arrow, tokens as plain bytes beside them.

A row's tokens lie together, so that the mixture's random order costs one read a row and maps no pages. Memory holds about
43 bytes a row. Shapes: N rows of the pool.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from dpo_core.data.examine import EXAMINED_SCHEMA
from dpo_core.data.pair_file import ROWS_SCHEMA, ArrowRows
from dpo_core.data.pairs import RowMarks, TokenizedPair
from dpo_core.data.pool import BYTES_PER_TOKEN, KEY_BYTES, POOL_SCHEMA, PoolPart

FACTS_FILE, TOKENS_FILE, EXAMINED_FILE = "pool.arrow", "pool.tokens", "pool.examined.arrow"


@contextlib.contextmanager
def open_pool(folder: Path) -> Iterator[Callable[[PoolPart], None]]:
    """Yield a function that appends a part to a new pool in ``folder``."""
    with (
        contextlib.ExitStack() as opened,
        pa.OSFile(str(folder / FACTS_FILE), "wb") as sink,
        pa.ipc.new_file(sink, POOL_SCHEMA) as facts,
        (folder / TOKENS_FILE).open("wb") as tokens,
    ):
        examined = None

        def write(part: PoolPart) -> None:
            nonlocal examined
            facts.write_batch(part.facts)
            tokens.write(part.tokens)
            if part.examined is not None:
                if examined is None:
                    file = opened.enter_context(pa.OSFile(str(folder / EXAMINED_FILE), "wb"))
                    examined = opened.enter_context(pa.ipc.new_file(file, EXAMINED_SCHEMA))
                examined.write_batch(part.examined)

        yield write


class PoolReader:
    """The rows of a finished pool by their places, 0 to N - 1."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._facts = folder, ArrowRows(folder / FACTS_FILE)
        self.sources = self._facts.column("source")  # int32 [N], ascending
        self.rows = self._facts.column("row")  # int64 [N], number in the source, ascending in each
        self.prefix_lengths = self._facts.column("prefix_length")  # int32 [N]
        self.weights, self.margins = (
            self._facts.column(name) for name in ("weight", "margin")
        )  # float32 [N]
        self.lengths_N2 = np.stack(  # int32; 0 for a dropped row
            [self._facts.column("chosen_length"), self._facts.column("rejected_length")], axis=1
        )
        self.is_kept = self.lengths_N2[:, 0] > 0  # bool [N]
        sizes = self.lengths_N2.sum(axis=1, dtype=np.int64) * BYTES_PER_TOKEN + KEY_BYTES * self.is_kept
        self._ends = np.cumsum(sizes)
        self._tokens = os.open(folder / TOKENS_FILE, os.O_RDONLY)

    def prompt_keys(self) -> np.ndarray:
        """Return keys of the prompts, bytes S32 [N]."""
        return self._facts.keys("prompt_key")

    @cached_property
    def numbers(self) -> np.ndarray:
        """Number of each pair among those of its row, int32 [N]."""
        return self._facts.column("number")

    def places_of(self, source: int, rows: np.ndarray) -> np.ndarray:
        """Return the places of all pairs of a source's rows, int64 [n], in the order of ``rows``; a row's stand together."""
        start, end = np.searchsorted(self.sources, [source, source + 1])
        numbers = self.rows[start:end]
        first = np.searchsorted(numbers, rows)
        counts = np.searchsorted(numbers, rows, side="right") - first
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return start + np.repeat(first, counts) + within

    def row_keys(self) -> np.ndarray:
        """Return content keys of the rows, bytes S32 [N]; empty for a dropped one."""
        return self._facts.keys("row_key")

    @cached_property
    def _examined(self) -> ArrowRows:
        return ArrowRows(self._folder / EXAMINED_FILE)

    def band(self, number: int) -> np.ndarray:
        """Return hashes of one band of all rows, uint64 [N]; 0 for a dropped row."""
        parts = [_band(batch.column("bands"), number) for batch in self._examined.batches()]
        return np.concatenate(parts)

    def overlaps(self) -> Iterator[tuple[int, float, list[int]]]:
        """Yield places of rows that overlap with evaluation instances, the largest share, and the instances, most first."""
        first = 0
        for batch in self._examined.batches():
            lists = batch.column("instances")
            for i in np.flatnonzero(np.diff(lists.offsets.to_numpy())).tolist():
                yield first + i, batch.column("share")[i].as_py(), lists[i].as_py()
            first += batch.num_rows

    def marks(self) -> tuple[np.ndarray, ...]:
        """Return the ``RowMarks`` of the rows, bool [N] each."""
        return tuple(map(self._facts.column, RowMarks._fields))

    def leave_out(self, places: np.ndarray) -> None:
        """Keep the rows at ``places`` no longer."""
        self.is_kept[places] = False

    def batch(self, places: np.ndarray) -> pa.RecordBatch:
        """Make the rows of ``ROWS_SCHEMA`` at ``places``: what ``pairs_batch`` makes of ``pairs``, with bytes cut and joined
        but no array made of any row."""
        sides = self.lengths_N2[places]
        ends, lengths = self._ends[places].tolist(), sides.tolist()
        columns: list[list[bytes]] = [[], [], [], [], []]
        keys, *parts = columns
        for end, (chosen, rejected) in zip(ends, lengths, strict=True):
            num_tokens = chosen + rejected
            content = self._content(end, num_tokens)
            ids, labels = KEY_BYTES + 4 * chosen, KEY_BYTES + 4 * num_tokens
            keys.append(content[:KEY_BYTES])
            parts[0].append(content[KEY_BYTES:ids])
            parts[1].append(content[labels : labels + chosen])
            parts[2].append(content[ids:labels])
            parts[3].append(content[labels + chosen :])
        joined = [pa.py_buffer(b"".join(column)) for column in columns]
        key_ends = pa.py_buffer(np.arange(len(places) + 1, dtype=np.int32) * KEY_BYTES)
        lists = [
            _list_array(
                np.cumsum(sides[:, number // 2]), joined[1 + number], pa.uint8() if number % 2 else pa.int32()
            )
            for number in range(4)
        ]
        return pa.record_batch(
            [
                pa.Array.from_buffers(pa.string(), len(places), [None, key_ends, joined[0]]),
                pa.array(self.prefix_lengths[places], pa.int32()),
                *(pa.array(column, pa.int32()) for column in sides.T),
                *lists,
                pa.array(self.sources[places], pa.int32()),
                pa.array(self.weights[places], pa.float32()),
                pa.array(self.margins[places], pa.float32()),
            ],
            schema=ROWS_SCHEMA,
        )

    @cached_property
    def prompt_lengths(self) -> np.ndarray:
        """Number of ids of each pair's prompt, which its chosen side begins with, int32 [N]; -1 where that is not known."""
        return self._facts.column("prompt_length")

    def prompt_ids(self, places: np.ndarray) -> list[np.ndarray]:
        """Return the prompts' ids, int32 [T], of kept rows at ``places`` with a known number of them."""
        ends, sides = self._ends[places].tolist(), self.lengths_N2[places].sum(axis=1).tolist()
        lengths = self.prompt_lengths[places].tolist()
        return [
            np.frombuffer(self._content(end, num_tokens), np.int32, length, KEY_BYTES)
            for end, num_tokens, length in zip(ends, sides, lengths, strict=True)
        ]

    def pairs(self, places: np.ndarray) -> list[TokenizedPair]:
        """Return the kept rows at ``places``."""
        ends, lengths = self._ends[places].tolist(), self.lengths_N2[places].tolist()
        return [self._pair(end, *sides) for end, sides in zip(ends, lengths, strict=True)]

    def _pair(self, end: int, chosen: int, rejected: int) -> TokenizedPair:
        tokens = chosen + rejected
        content = self._content(end, tokens)
        ids = np.frombuffer(content, np.int32, tokens, KEY_BYTES)
        trained = np.frombuffer(content, np.uint8, tokens, KEY_BYTES + 4 * tokens)
        return TokenizedPair(
            content[:KEY_BYTES].decode(), ids[:chosen], trained[:chosen], ids[chosen:], trained[chosen:]
        )

    def _content(self, end: int, num_tokens: int) -> bytes:
        """A row's key, ids and labels, as ``PoolPart`` has them."""
        size = KEY_BYTES + num_tokens * BYTES_PER_TOKEN
        content = os.pread(self._tokens, size, end - size)
        assert len(content) == size, "the pool's tokens are cut off"
        return content

    def __enter__(self) -> "PoolReader":
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the pool from the disk."""
        os.close(self._tokens)
        for name in (FACTS_FILE, TOKENS_FILE, EXAMINED_FILE):
            (self._folder / name).unlink(missing_ok=True)


def _list_array(ends: np.ndarray, values: pa.Buffer, kind: pa.DataType) -> pa.ListArray:
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    of_all = pa.Array.from_buffers(kind, int(offsets[-1]), [None, values])
    return pa.ListArray.from_arrays(pa.array(offsets), of_all)


def _band(column: pa.BinaryArray, number: int) -> np.ndarray:
    _, offsets, data = column.buffers()
    starts = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    there = np.diff(starts) > 0
    values = np.zeros(len(column), dtype=np.uint64)
    if there.any():
        values[there] = np.frombuffer(data, np.uint64)[starts[:-1][there] // 8 + number]
    return values
