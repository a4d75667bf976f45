"""Every selected row once, converted and tokenised, kept or dropped: facts and tokens, made by several processes."""

import hashlib
import json
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dpo_core.data.drops import DropReason, RowDropped
from dpo_core.data.formats import FormatName, rename_columns, to_pair
from dpo_core.data.pair_file import common_prefix_length, row_key
from dpo_core.data.pairs import PreferencePair, TokenizedPair
from dpo_core.data.sources import RowStore
from dpo_core.data.tokenize import PairTokenizer, TokenizedSide
from dpo_core.errors import StepCrashed

ROWS_PER_CHUNK = 256
MIN_ROWS_FOR_WORKERS = 1024  # below, starting processes costs more than it saves
CHUNKS_AHEAD = 4  # per worker; bounds what waits in memory
KEY_BYTES = 32
BYTES_PER_TOKEN = 5  # an int32 id and a label of 0 or 1

_SORTED_JSON = json.JSONEncoder(sort_keys=True).encode
# One row per converted row; its tokens lie in a file of their own. The key is empty, lengths are 0 for a dropped row.
POOL_SCHEMA = pa.schema([
    ("source", pa.int32()), ("row", pa.int64()), ("format", pa.string()), ("reason", pa.string()),
    ("truncated", pa.bool_()), ("prompt_key", pa.string()), ("prefix_length", pa.int32()),
    ("chosen_length", pa.int32()), ("rejected_length", pa.int32()),
])


@dataclass(frozen=True, slots=True)
class Chunk:
    """Ascending row numbers of one source."""

    source: int
    rows: np.ndarray  # int64


@dataclass(frozen=True, slots=True)
class PoolPart:
    """A chunk's rows: facts by ``POOL_SCHEMA``, and for each kept row its key, chosen and rejected ids (int32), then chosen
    and rejected labels (0 or 1), all in bytes."""

    facts: pa.RecordBatch
    tokens: bytes


@dataclass(slots=True)
class _Outcome:
    format: FormatName = "unrecognised"
    reason: DropReason | None = None
    truncated: bool = False
    prompt_key: str = ""
    pair: TokenizedPair | None = None


def prompt_key(prompt: list[dict]) -> str:
    """Key (hex) of a prompt's turns; blanks at the ends of turns do not make another prompt."""
    turns = [(turn["role"], turn["content"].strip(), turn.get("tool_calls")) for turn in prompt]
    return hashlib.blake2b(_SORTED_JSON(turns).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class PoolMaker:
    """Makes the pool's part of a chunk."""

    stores: tuple[RowStore, ...]
    columns: tuple[dict[str, str], ...]  # per source, ours -> theirs
    pair_tokenizer: PairTokenizer

    def pair(self, source: int, raw: Any) -> tuple[FormatName, PreferencePair]:
        """A converted raw row. Raises ``RowDropped``."""
        return to_pair(rename_columns(raw, self.columns[source]) if isinstance(raw, dict) else raw)

    def __call__(self, chunk: Chunk) -> PoolPart:
        outcomes, converted = [], []
        for raw in self.stores[chunk.source].values(chunk.rows):
            outcome = _Outcome()
            outcomes.append(outcome)
            try:
                outcome.format, pair = self.pair(chunk.source, raw)
            except RowDropped as dropped:
                outcome.format, outcome.reason = dropped.format, dropped.reason
                continue
            outcome.prompt_key = prompt_key(pair.prompt)
            converted.append((outcome, pair))
        results = self.pair_tokenizer([pair for _, pair in converted])
        for (outcome, _), result in zip(converted, results, strict=True):
            if isinstance(result, str):
                outcome.reason = result
            else:
                outcome.truncated = any(side.truncated for side in result)
                outcome.pair = _tokenized_pair(*result)
        return _part(chunk, outcomes)


def _tokenized_pair(chosen: TokenizedSide, rejected: TokenizedSide) -> TokenizedPair:
    arrays = (chosen.ids, chosen.trained, rejected.ids, rejected.trained)
    return TokenizedPair(row_key(arrays), *arrays)


def _part(chunk: Chunk, outcomes: list[_Outcome]) -> PoolPart:
    pairs = [outcome.pair for outcome in outcomes]
    facts = pa.record_batch([
        pa.array(np.full(len(outcomes), chunk.source, dtype=np.int32)), pa.array(chunk.rows),
        pa.array([o.format for o in outcomes], pa.string()), pa.array([o.reason for o in outcomes], pa.string()),
        pa.array([o.truncated for o in outcomes], pa.bool_()), pa.array([o.prompt_key for o in outcomes], pa.string()),
        pa.array([common_prefix_length(p.chosen_ids, p.rejected_ids) if p else 0 for p in pairs], pa.int32()),
        pa.array([len(p.chosen_ids) if p else 0 for p in pairs], pa.int32()),
        pa.array([len(p.rejected_ids) if p else 0 for p in pairs], pa.int32()),
    ], schema=POOL_SCHEMA)
    tokens = [part for p in pairs if p
              for part in (p.row_key.encode(), p.chosen_ids, p.rejected_ids, p.chosen_trained, p.rejected_trained)]
    return PoolPart(facts, b"".join(tokens))


def chunks_of(rows: list[np.ndarray]) -> Iterator[Chunk]:
    """Chunks of each source's row numbers, which are distinct and ascending."""
    for source, numbers in enumerate(rows):
        for first in range(0, len(numbers), ROWS_PER_CHUNK):
            yield Chunk(source, numbers[first:first + ROWS_PER_CHUNK])


_maker: PoolMaker | None = None  # of a worker process


def _end_with(parent: int) -> None:
    """A worker whose parent was killed would wait for its next chunk for ever."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _start_worker(maker: PoolMaker, parent: int) -> None:
    global _maker
    _maker = maker
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism


def _make_in_worker(chunk: Chunk) -> PoolPart:
    assert _maker is not None
    return _maker(chunk)


def make_pool(maker: PoolMaker, chunks: Iterable[Chunk], num_rows: int, num_workers: int) -> Iterator[PoolPart]:
    """Parts of ``chunks``, which hold ``num_rows`` rows, in order. The rows are the same for any number of workers.

    Raises ``StepCrashed`` if a worker process dies.
    """
    # Forked workers share the loaded tokenizer; where a system cannot fork, one process does the work.
    if num_workers == 1 or num_rows < MIN_ROWS_FOR_WORKERS or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(maker, chunks)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker,
                             initargs=(maker, os.getpid())) as executor:
        waiting = deque()
        try:
            for chunk in chunks:
                waiting.append(executor.submit(_make_in_worker, chunk))
                if len(waiting) >= num_workers * CHUNKS_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise StepCrashed(f"One of {num_workers} tokenising processes died, perhaps for want of memory. Lower "
                              "`num_workers` and start again.") from error
