"""Every selected row once, converted and tokenised, kept or dropped: facts and tokens, made by several processes."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dpo_core.contract.drops import DropReason, RowDropped
from dpo_core.contract.errors import CheckpointError, StepCrashed
from dpo_core.data.formats import FormatName, rename_columns, to_pair
from dpo_core.data.pair_file import common_prefix_length, row_key
from dpo_core.data.pairs import PreferencePair, TokenizedPair
from dpo_core.data.sources import RowStore
from dpo_core.data.tokenize import PairTokenizer, TokenizedSide

ROWS_PER_CHUNK = 256
MIN_ROWS_FOR_WORKERS = 1024  # below, starting processes costs more than it saves
CHUNKS_AHEAD = 4  # per worker; bounds what waits in memory
SECONDS_PER_CHUNK, SECONDS_PER_ROW = 60.0, 20.0  # of processor time; a chunk takes 0.1 s
MAX_ROWS_STUCK = 8
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
                outcome.prompt_key = prompt_key(pair.prompt)
            except RowDropped as dropped:
                outcome.format, outcome.reason = dropped.format, dropped.reason
                continue
            except RecursionError:  # JSON of a thousand levels
                outcome.reason = "over_limits"
                continue
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


@contextlib.contextmanager
def _ended_if_stuck(seconds: float) -> Iterator[None]:
    """End this process if the block computes longer, even inside a library that looks at no timer: a tokenizer's regular
    expressions can take for ever, too. Another signal than that of ``render_limits``, and not to be caught."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        if in_main_thread:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _make_in_worker(chunk: Chunk, seconds: float) -> PoolPart:
    assert _maker is not None
    with _ended_if_stuck(seconds):
        return _maker(chunk)


def make_pool(maker: PoolMaker, chunks: Iterable[Chunk], num_rows: int, num_workers: int) -> Iterator[PoolPart]:
    """Parts of ``chunks``, which hold ``num_rows`` rows, in order. The rows are the same for any number of workers.

    A row on which a worker is stuck is dropped. Raises ``StepCrashed`` if a worker process dies otherwise, and
    ``CheckpointError`` if many rows are such.
    """
    # Forked workers share the loaded tokenizer; where a system cannot fork, one process does the work.
    if num_workers == 1 or num_rows < MIN_ROWS_FOR_WORKERS or "fork" not in multiprocessing.get_all_start_methods():
        for chunk in chunks:
            with _ended_if_stuck(SECONDS_PER_CHUNK):
                part = maker(chunk)
            yield part
        return
    chunks, left = iter(chunks), deque[Chunk]()
    while True:
        workers = _Workers(maker, num_workers)
        try:
            yield from workers.parts(chunks, left, SECONDS_PER_CHUNK)
            return
        except BrokenProcessPool as error:
            if not workers.was_stuck():
                raise _crashed(num_workers) from error
        yield from _row_by_row(maker, left)
        left.clear()


def _crashed(num_workers: int) -> StepCrashed:
    return StepCrashed(f"One of {num_workers} tokenising processes died, perhaps for want of memory. Lower "
                       "`num_workers` and start again.")


class _Workers:
    """Processes that make parts."""

    def __init__(self, maker: PoolMaker, num_workers: int) -> None:
        self.num_workers, self.processes = num_workers, []
        self.executor = ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("fork"),
                                            initializer=_start_worker, initargs=(maker, os.getpid()))

    def parts(self, chunks: Iterator[Chunk], left: deque[Chunk], seconds: float) -> Iterator[PoolPart]:
        """The parts of ``chunks``, in order. ``left``: those that were taken from ``chunks`` and are not made yet.

        Raises ``BrokenProcessPool``.
        """
        with self.executor as executor:
            waiting: deque[Future[PoolPart]] = deque()

            def made() -> PoolPart:
                part = waiting.popleft().result()
                left.popleft()
                return part

            try:
                for chunk in chunks:
                    left.append(chunk)
                    waiting.append(executor.submit(_make_in_worker, chunk, seconds))
                    if len(waiting) >= self.num_workers * CHUNKS_AHEAD:
                        yield made()
                while waiting:
                    yield made()
            finally:
                self.processes = list((executor._processes or {}).values())

    def was_stuck(self) -> bool:
        """Whether one of them, once all are over, was ended by ``_ended_if_stuck``."""
        return any(process.exitcode == -signal.SIGVTALRM for process in self.processes)


def _row_by_row(maker: PoolMaker, chunks: Iterable[Chunk]) -> Iterator[PoolPart]:
    """Parts of a row each. One on which a process is stuck is dropped, and another process goes on behind it."""
    left = deque(Chunk(chunk.source, chunk.rows[place:place + 1]) for chunk in chunks for place in range(len(chunk.rows)))
    for _ in range(MAX_ROWS_STUCK):
        workers, taken = _Workers(maker, 1), deque[Chunk]()
        rows = list(left)
        try:
            for part in workers.parts(iter(rows), taken, SECONDS_PER_ROW):
                left.popleft()
                yield part
            return
        except BrokenProcessPool as error:
            if not workers.was_stuck():
                raise _crashed(1) from error
        yield _part(left.popleft(), [_Outcome(reason="over_limits")])
    raise CheckpointError(f"Tokenising took more than {SECONDS_PER_ROW:.0f} s of processor time on each of {MAX_ROWS_STUCK} "
                          "rows. The checkpoint's tokenizer or chat template is not fit for use; choose another one "
                          "(checkpoint.chat_template), or another checkpoint.")
