"""Every selected row once, converted and tokenised, kept or dropped: record batches, made by several processes."""

import hashlib
import json
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dpo_core.data.drops import DropReason, RowDropped
from dpo_core.data.formats import FormatName, rename_columns, to_pair
from dpo_core.data.pair_file import ROWS_SCHEMA, common_prefix_length, pairs_batch, row_key
from dpo_core.data.pairs import PreferencePair, TokenizedPair
from dpo_core.data.sources import RowStore
from dpo_core.data.tokenize import PairTokenizer, TokenizedSide
from dpo_core.errors import StepCrashed

ROWS_PER_CHUNK = 128
MIN_ROWS_FOR_WORKERS = 1024  # below, starting processes costs more than it saves
CHUNKS_AHEAD = 4  # per worker; bounds what waits in memory

POOL_SCHEMA = pa.schema([
    ("source", pa.int32()), ("row", pa.int64()), ("format", pa.string()), ("reason", pa.string()),
    ("truncated", pa.bool_()), ("prompt_key", pa.string()), *ROWS_SCHEMA,
])
_NOTHING = TokenizedPair("", *(np.zeros(0, dtype=kind) for kind in (np.int32, bool, np.int32, bool)))


@dataclass(frozen=True, slots=True)
class Chunk:
    """Ascending row numbers of one source."""

    source: int
    rows: tuple[int, ...]


@dataclass(slots=True)
class _Outcome:
    format: FormatName = "unrecognised"
    reason: DropReason | None = None
    truncated: bool = False
    prompt_key: str = ""
    pair: TokenizedPair = _NOTHING


def prompt_key(prompt: list[dict]) -> str:
    """Key (hex) of a prompt's turns; blanks at the ends of turns do not make another prompt."""
    turns = [(turn["role"], turn["content"].strip(), turn.get("tool_calls")) for turn in prompt]
    return hashlib.blake2b(json.dumps(turns, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class PoolMaker:
    """Makes the pool's record batch of a chunk."""

    stores: tuple[RowStore, ...]
    columns: tuple[dict[str, str], ...]  # per source, ours -> theirs
    pair_tokenizer: PairTokenizer

    def pair(self, source: int, row: int) -> tuple[FormatName, PreferencePair]:
        """The converted raw row. Raises ``RowDropped``."""
        raw = self.stores[source][row]
        return to_pair(rename_columns(raw, self.columns[source]) if isinstance(raw, dict) else raw)

    def __call__(self, chunk: Chunk) -> pa.RecordBatch:
        outcomes, converted = [], []
        for row in chunk.rows:
            outcome = _Outcome()
            outcomes.append(outcome)
            try:
                outcome.format, pair = self.pair(chunk.source, row)
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
        return _pool_batch(chunk, outcomes)


def _tokenized_pair(chosen: TokenizedSide, rejected: TokenizedSide) -> TokenizedPair:
    arrays = (chosen.ids, chosen.trained, rejected.ids, rejected.trained)
    return TokenizedPair(row_key(arrays), *arrays)


def _pool_batch(chunk: Chunk, outcomes: list[_Outcome]) -> pa.RecordBatch:
    pairs = [outcome.pair for outcome in outcomes]
    prefixes = [common_prefix_length(pair.chosen_ids, pair.rejected_ids) for pair in pairs]
    return pa.record_batch([
        pa.array([chunk.source] * len(outcomes), pa.int32()), pa.array(chunk.rows, pa.int64()),
        pa.array([o.format for o in outcomes], pa.string()), pa.array([o.reason for o in outcomes], pa.string()),
        pa.array([o.truncated for o in outcomes], pa.bool_()), pa.array([o.prompt_key for o in outcomes], pa.string()),
        *pairs_batch(pairs, prefixes).columns,
    ], schema=POOL_SCHEMA)


def chunks_of(selections: list[np.ndarray]) -> list[Chunk]:
    """Chunks that cover every selected row of every source once, in ascending order."""
    chunks = []
    for source, selection in enumerate(selections):
        rows = np.unique(selection).tolist()
        chunks += [Chunk(source, tuple(rows[i:i + ROWS_PER_CHUNK])) for i in range(0, len(rows), ROWS_PER_CHUNK)]
    return chunks


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


def _make_in_worker(chunk: Chunk) -> pa.RecordBatch:
    assert _maker is not None
    return _maker(chunk)


def make_pool(maker: PoolMaker, chunks: list[Chunk], num_workers: int) -> Iterator[pa.RecordBatch]:
    """Record batches of ``chunks`` in order. The rows are the same for any number of workers.

    Raises ``StepCrashed`` if a worker process dies.
    """
    num_rows = sum(len(chunk.rows) for chunk in chunks)
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
