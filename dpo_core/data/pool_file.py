"""How the pool of converted rows lies on disk while the mixture is made: facts as Arrow, tokens as plain bytes beside them.

A row's tokens lie together, so that the mixture's random order costs one read a row and maps no pages. Memory holds about
35 bytes a row. Shapes: N rows of the pool.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from dpo_core.data.pair_file import ArrowRows
from dpo_core.data.pairs import TokenizedPair
from dpo_core.data.pool import BYTES_PER_TOKEN, KEY_BYTES, POOL_SCHEMA, PoolPart

FACTS_FILE, TOKENS_FILE = "pool.arrow", "pool.tokens"


@contextlib.contextmanager
def open_pool(folder: Path) -> Iterator[Callable[[PoolPart], None]]:
    """Yield a function that appends a part to a new pool in ``folder``."""
    with (
        pa.OSFile(str(folder / FACTS_FILE), "wb") as sink,
        pa.ipc.new_file(sink, POOL_SCHEMA) as facts,
        (folder / TOKENS_FILE).open("wb") as tokens,
    ):

        def write(part: PoolPart) -> None:
            facts.write_batch(part.facts)
            tokens.write(part.tokens)

        yield write


class PoolReader:
    """The rows of a finished pool by their places, 0 to N - 1."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._facts = folder, ArrowRows(folder / FACTS_FILE)
        self.sources = self._facts.column("source")  # int32 [N], ascending
        self.rows = self._facts.column("row")  # int64 [N], number in the source, ascending in each
        self.prefix_lengths = self._facts.column("prefix_length")  # int32 [N]
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

    def row_keys(self) -> np.ndarray:
        """Return content keys of the rows, bytes S32 [N]; empty for a dropped one."""
        return self._facts.keys("row_key")

    def truncated(self) -> np.ndarray:
        """Return whether a side of the row was cut, bool [N]."""
        return self._facts.column("truncated")

    def leave_out(self, places: np.ndarray) -> None:
        """Keep the rows at ``places`` no longer."""
        self.is_kept[places] = False

    def pairs(self, places: np.ndarray) -> list[TokenizedPair]:
        """Return the kept rows at ``places``."""
        ends, lengths = self._ends[places].tolist(), self.lengths_N2[places].tolist()
        return [self._pair(end, *sides) for end, sides in zip(ends, lengths, strict=True)]

    def _pair(self, end: int, chosen: int, rejected: int) -> TokenizedPair:
        tokens = chosen + rejected
        size = KEY_BYTES + tokens * BYTES_PER_TOKEN
        content = os.pread(self._tokens, size, end - size)
        assert len(content) == size, "the pool's tokens are cut off"
        ids = np.frombuffer(content, np.int32, tokens, KEY_BYTES)
        trained = np.frombuffer(content, np.uint8, tokens, KEY_BYTES + 4 * tokens)
        return TokenizedPair(
            content[:KEY_BYTES].decode(), ids[:chosen], trained[:chosen], ids[chosen:], trained[chosen:]
        )

    def __enter__(self) -> "PoolReader":
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the pool from the disk."""
        os.close(self._tokens)
        for name in (FACTS_FILE, TOKENS_FILE):
            (self._folder / name).unlink()
