"""How tokenised pairs lie on disk: Arrow IPC files, memory-mapped when read. The one place that knows the columns.

``rows.arrow``: row_key, prefix_length, chosen_length, rejected_length, chosen_ids, chosen_trained (0 or 1 per token),
rejected_ids, rejected_trained, source (its number in ``sources.json``), weight, margin (NaN: none); mixtures of versions
before 3 lack the last three. ``prompts.arrow`` (held-out split): prompt_ids, prompt_text, constraints (JSON text).
Shapes: T tokens of one sequence, N rows.
"""

import hashlib
import mmap
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dpo_core.contract.errors import StoreError
from dpo_core.data.pairs import TokenizedPair

ROWS_FILE, PROMPTS_FILE, SOURCES_FILE = "rows.arrow", "prompts.arrow", "sources.json"
ROWS_PER_BATCH = 512
KEY_TYPE = np.dtype("S32")  # of row and prompt keys in memory: 32 hexadecimal digits
# Mapped pages count as resident until given back: a run that reads a file at random would seem to hold all of it.
BATCHES_BETWEEN_RELEASES, READS_BETWEEN_RELEASES = 64, 4096
SIDES = ("chosen_ids", "chosen_trained", "rejected_ids", "rejected_trained")
ROWS_SCHEMA = pa.schema(
    [
        ("row_key", pa.string()),
        ("prefix_length", pa.int32()),
        ("chosen_length", pa.int32()),
        ("rejected_length", pa.int32()),
        ("chosen_ids", pa.list_(pa.int32())),
        ("chosen_trained", pa.list_(pa.uint8())),
        ("rejected_ids", pa.list_(pa.int32())),
        ("rejected_trained", pa.list_(pa.uint8())),
        ("source", pa.int32()),
        ("weight", pa.float32()),
        ("margin", pa.float32()),
    ]
)
PROMPTS_SCHEMA = pa.schema(
    [("prompt_ids", pa.list_(pa.int32())), ("prompt_text", pa.string()), ("constraints", pa.string())]
)


def row_key(arrays: Iterable[np.ndarray]) -> str:
    """Return the content key (hex, 32 characters) of the four arrays of a pair, in the order of ``TokenizedPair``."""
    content = b"".join(
        [part for array in arrays for part in (len(array).to_bytes(8, "little"), array.tobytes())]
    )
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def common_prefix_length(left: np.ndarray, right: np.ndarray) -> int:
    """Return the length of the longest common prefix of two id arrays."""
    shorter = min(len(left), len(right))
    differs = left[:shorter] != right[:shorter]
    first = int(differs.argmax()) if shorter else 0
    return first if shorter and differs[first] else shorter


def list_array(arrays: list[np.ndarray], dtype: type) -> pa.ListArray:
    """Return Arrow list column of 1-D arrays."""
    offsets = np.zeros(len(arrays) + 1, dtype=np.int32)
    np.cumsum([len(array) for array in arrays], out=offsets[1:])
    values = np.concatenate(arrays) if arrays else np.zeros(0)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.astype(dtype, copy=False)))


def pairs_batch(
    pairs: list[TokenizedPair],
    prefix_lengths: list[int],
    sources: np.ndarray,
    weights: np.ndarray,
    margins: np.ndarray,
) -> pa.RecordBatch:
    """Return rows of ``ROWS_SCHEMA``."""
    return pa.record_batch(
        [
            pa.array([pair.row_key for pair in pairs], pa.string()),
            pa.array(prefix_lengths, pa.int32()),
            pa.array([len(pair.chosen_ids) for pair in pairs], pa.int32()),
            pa.array([len(pair.rejected_ids) for pair in pairs], pa.int32()),
            *(
                list_array(
                    [getattr(pair, side) for pair in pairs],
                    np.uint8 if side.endswith("trained") else np.int32,
                )
                for side in SIDES
            ),
            pa.array(sources, pa.int32()),
            pa.array(weights, pa.float32()),
            pa.array(margins, pa.float32()),
        ],
        schema=ROWS_SCHEMA,
    )


class ArrowRows:
    """Random access to a memory-mapped Arrow file. Raises ``StoreError`` if it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._reader = pa.ipc.open_file(pa.py_buffer(self._map))
            sizes = [self._reader.get_batch(i).num_rows for i in range(self._reader.num_record_batches)]
        except (OSError, ValueError, pa.ArrowException) as error:
            raise StoreError(
                f"{path} cannot be read ({error}). Delete the step's folder to have it made again."
            ) from error
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._list_views = lru_cache(maxsize=64)(
            self._views_of
        )  # batches whose buffers are mapped as numpy views
        self._num_reads = 0
        self.release()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def release(self) -> None:
        """Give the mapped pages back. What was read before stays valid; it is mapped again when it is looked at."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the file's record batches in order; pages are given back in between."""
        for i in range(self._reader.num_record_batches):
            yield self._reader.get_batch(i)
            if i % BATCHES_BETWEEN_RELEASES == 0:
                self.release()

    def column(self, name: str) -> np.ndarray:
        """Return a numeric or boolean column of all rows, [N]."""
        parts = [batch.column(name).to_numpy(zero_copy_only=False).copy() for batch in self.batches()]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)

    def has(self, name: str) -> bool:
        """Return whether the file has a column."""
        return name in self._reader.schema.names

    def keys(self, name: str) -> np.ndarray:
        """Return a text column of all rows whose texts are keys or empty, as bytes S32 [N]."""
        parts = [_key_array(batch.column(name)) for batch in self.batches()]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=KEY_TYPE)

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        batch = int(np.searchsorted(self._starts, index, side="right")) - 1
        return batch, index - int(self._starts[batch])

    def _views_of(self, batch: int, name: str) -> tuple[np.ndarray, np.ndarray]:
        column = self._reader.get_batch(batch).column(name)
        return column.offsets.to_numpy(), column.values.to_numpy()

    def ragged(self, name: str, index: int) -> np.ndarray:
        """Return row ``index`` of a list column as a view on the mapped file."""
        batch, place = self._place(index)
        self._num_reads += 1
        if self._num_reads % READS_BETWEEN_RELEASES == 0:
            self.release()
        offsets, values = self._list_views(batch, name)
        return values[offsets[place] : offsets[place + 1]]

    def scalar(self, name: str, index: int) -> Any:
        """Return row ``index`` of a plain column, as the column's type has it."""
        batch, place = self._place(index)
        return self._reader.get_batch(batch).column(name)[place].as_py()


def _key_array(column: pa.StringArray) -> np.ndarray:
    """Texts as S32 [n]. Where all are 32 characters they lie so in the column's buffer."""
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    if len(column) and np.all(np.diff(ends) == KEY_TYPE.itemsize):
        return np.frombuffer(data, KEY_TYPE, len(column), int(ends[0])).copy()
    return np.array(column.to_pylist(), dtype=KEY_TYPE)
