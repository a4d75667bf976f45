"""How tokenised pairs lie on disk: Arrow IPC files, memory-mapped when read. The one place that knows the columns.

``rows.arrow``: row_key, prefix_length, chosen_length, rejected_length, chosen_ids, chosen_trained (0 or 1 per token),
rejected_ids, rejected_trained. ``prompts.arrow`` (held-out split): prompt_ids, prompt_text, constraints (JSON text).
Shapes: T tokens of one sequence, N rows.
"""

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from dpo_core.data.pairs import TokenizedPair
from dpo_core.errors import StoreError

ROWS_FILE, PROMPTS_FILE = "rows.arrow", "prompts.arrow"
ROWS_PER_BATCH = 512
SIDES = ("chosen_ids", "chosen_trained", "rejected_ids", "rejected_trained")
ROWS_SCHEMA = pa.schema([
    ("row_key", pa.string()), ("prefix_length", pa.int32()),
    ("chosen_length", pa.int32()), ("rejected_length", pa.int32()),
    ("chosen_ids", pa.list_(pa.int32())), ("chosen_trained", pa.list_(pa.uint8())),
    ("rejected_ids", pa.list_(pa.int32())), ("rejected_trained", pa.list_(pa.uint8())),
])
PROMPTS_SCHEMA = pa.schema([
    ("prompt_ids", pa.list_(pa.int32())), ("prompt_text", pa.string()), ("constraints", pa.string()),
])


def row_key(arrays: Iterable[np.ndarray]) -> str:
    """Content key (hex, 32 characters) of the four arrays of a pair, in the order of ``TokenizedPair``."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def common_prefix_length(left: np.ndarray, right: np.ndarray) -> int:
    """Length of the longest common prefix of two id arrays."""
    shorter = min(len(left), len(right))
    differing = np.flatnonzero(left[:shorter] != right[:shorter])
    return int(differing[0]) if len(differing) else shorter


def list_array(arrays: list[np.ndarray], dtype: type) -> pa.ListArray:
    """Arrow list column of 1-D arrays."""
    offsets = np.zeros(len(arrays) + 1, dtype=np.int32)
    np.cumsum([len(array) for array in arrays], out=offsets[1:])
    values = np.concatenate(arrays) if arrays else np.zeros(0)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.astype(dtype, copy=False)))


def pairs_batch(pairs: list[TokenizedPair], prefix_lengths: list[int]) -> pa.RecordBatch:
    """Rows of ``ROWS_SCHEMA``."""
    return pa.record_batch([
        pa.array([pair.row_key for pair in pairs], pa.string()), pa.array(prefix_lengths, pa.int32()),
        pa.array([len(pair.chosen_ids) for pair in pairs], pa.int32()),
        pa.array([len(pair.rejected_ids) for pair in pairs], pa.int32()),
        *(list_array([getattr(pair, side) for pair in pairs], np.uint8 if side.endswith("trained") else np.int32)
          for side in SIDES),
    ], schema=ROWS_SCHEMA)


class ArrowRows:
    """Random access to a memory-mapped Arrow file. Raises ``StoreError`` if it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
            sizes = [self._reader.get_batch(i).num_rows for i in range(self._reader.num_record_batches)]
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"{path} cannot be read ({error}). Delete the step's folder to have it made "
                             "again.") from error
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._list_views = lru_cache(maxsize=64)(self._views_of)  # batches whose buffers are mapped as numpy views

    def __len__(self) -> int:
        return int(self._starts[-1])

    def column(self, name: str) -> np.ndarray:
        """A numeric column of all rows, [N]."""
        parts = [self._reader.get_batch(i).column(name).to_numpy() for i in range(self._reader.num_record_batches)]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)

    def texts(self, name: str) -> list[str]:
        """A text column of all rows."""
        return [text for i in range(self._reader.num_record_batches)
                for text in self._reader.get_batch(i).column(name).to_pylist()]

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        batch = int(np.searchsorted(self._starts, index, side="right")) - 1
        return batch, index - int(self._starts[batch])

    def _views_of(self, batch: int, name: str) -> tuple[np.ndarray, np.ndarray]:
        column = self._reader.get_batch(batch).column(name)
        return column.offsets.to_numpy(), column.values.to_numpy()

    def ragged(self, name: str, index: int) -> np.ndarray:
        """Row ``index`` of a list column as a view on the mapped file."""
        batch, place = self._place(index)
        offsets, values = self._list_views(batch, name)
        return values[offsets[place]:offsets[place + 1]]

    def scalar(self, name: str, index: int) -> str | int:
        """Row ``index`` of a plain column."""
        batch, place = self._place(index)
        return self._reader.get_batch(batch).column(name)[place].as_py()
