"""Every selected row once, converted and tokenised, kept or dropped: facts and tokens, made by several processes."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from dpo_core.contract.drops import DropReason, FormatName, RowDropped
from dpo_core.contract.errors import CheckpointError
from dpo_core.data.examine import Examiner
from dpo_core.data.formats import rename_columns, to_pair
from dpo_core.data.half_characters import whole
from dpo_core.data.messages import prompt_key
from dpo_core.data.pair_file import common_prefix_length, row_key
from dpo_core.data.pair_numbers import NO_MARGIN, NO_WEIGHT, pair_numbers
from dpo_core.data.pairs import PreferencePair, RowMarks, TokenizedPair, repeats_prompt
from dpo_core.data.ranked_answers import RankedAnswers
from dpo_core.data.sources import RowStore
from dpo_core.data.tokenize import PairTokenizer, TokenizedSide
from dpo_core.data.workers import MAX_MEMORY_BYTES, Workers, can_fork, ended_if_stuck

ROWS_PER_CHUNK = 256
MIN_ROWS_FOR_SEVERAL = 1024  # below, starting more than one process costs more than it saves
SECONDS_PER_CHUNK, SECONDS_PER_ROW = 60.0, 20.0  # of processor time; a chunk takes 0.1 s
MAX_ROWS_OVER = 8
KEY_BYTES = 32
BYTES_PER_TOKEN = 5  # an int32 id and a label of 0 or 1

# One row per converted row; its tokens lie in a file of their own. The key is empty, lengths are 0 for a dropped row.
POOL_SCHEMA = pa.schema(
    [
        ("source", pa.int32()),
        ("row", pa.int64()),
        ("number", pa.int32()),  # of the pair among those of its row
        ("format", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        *((name, pa.bool_()) for name in RowMarks._fields),
        ("prompt_key", pa.string()),
        ("row_key", pa.string()),
        ("prefix_length", pa.int32()),
        ("chosen_length", pa.int32()),
        ("rejected_length", pa.int32()),
        ("prompt_length", pa.int32()),  # ids of the prompt by itself; -1 where they must be made
        ("weight", pa.float32()),
        ("margin", pa.float32()),
    ]
)


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
    examined: pa.RecordBatch | None = None  # by ``EXAMINED_SCHEMA``, where checks of quality need it


@dataclass(slots=True)
class _Outcome:
    row: int
    number: int = 0
    format: FormatName = "unrecognised"
    reason: DropReason | None = None
    detail: str = ""
    marks: RowMarks = field(default_factory=RowMarks)
    prompt_key: str = ""
    pair: TokenizedPair | None = None
    num_prompt_tokens: int | None = None
    weight: float = NO_WEIGHT
    margin: float = NO_MARGIN
    said: PreferencePair | None = None  # of the same rows as ``pair``

    def drop(self, dropped: RowDropped) -> None:
        self.reason, self.detail = dropped.reason, dropped.detail


@dataclass(frozen=True)
class PoolMaker:
    """Makes the pool's part of a chunk."""

    stores: tuple[RowStore, ...]
    columns: tuple[dict[str, str], ...]  # per source, ours -> theirs
    pair_tokenizer: PairTokenizer
    examiner: Examiner | None = None  # for checks of quality
    template_kwargs: tuple[dict, ...] = ()  # per source, what its rows' own go before; none for no source
    ranked: tuple[RankedAnswers | None, ...] = ()  # per source, whose rows hold several answers; as above

    def pair(self, source: int, raw: Any) -> tuple[FormatName, PreferencePair]:
        """Return a converted raw row. Raises ``RowDropped``."""
        named = rename_columns(raw, self.columns[source]) if isinstance(raw, dict) else raw
        name, pair = to_pair(named, self.pair_tokenizer.renderer.message_fields)
        given = self.template_kwargs[source] if self.template_kwargs else {}
        return name, replace(pair, template_kwargs={**given, **pair.template_kwargs}) if given else pair

    def pairs_at(self, sources: np.ndarray, rows: np.ndarray, numbers: np.ndarray) -> list[PreferencePair]:
        """Read pairs of the pool again, as they were converted: each one's source, row and number among those of its row,
        int [n]."""
        values: dict[tuple[int, int], Any] = {}
        for source in np.unique(sources).tolist():
            needed = np.unique(rows[sources == source])
            found = self.stores[source].values(needed)
            values |= {(source, row): value for row, value in zip(needed.tolist(), found, strict=True)}
        return [
            self.pair(source, self._rows_of(source, values[source, row], row)[number])[1]
            for source, row, number in zip(sources.tolist(), rows.tolist(), numbers.tolist(), strict=True)
        ]

    def _rows_of(self, source: int, raw: Any, row: int) -> list[Any]:
        """The row as often as it gives pairs. Raises ``RowDropped``."""
        ranked = self.ranked[source] if self.ranked else None
        return [raw] if ranked is None or not isinstance(raw, dict) else ranked.rows(raw, row)

    def _outcomes(self, chunk: Chunk) -> Iterator[tuple[_Outcome, PreferencePair | None]]:
        values = self.stores[chunk.source].values(chunk.rows)
        for row, raw in zip(chunk.rows.tolist(), values, strict=True):
            try:
                rows = self._rows_of(chunk.source, raw, row)
            except RowDropped as dropped:
                yield _Outcome(row, reason=dropped.reason, detail=dropped.detail), None
                continue
            for number, one in enumerate(rows):
                outcome = _Outcome(row, number)
                yield outcome, self._converted(chunk.source, one, outcome)

    def _converted(self, source: int, raw: Any, outcome: _Outcome) -> PreferencePair | None:
        """The pair, told of in ``outcome``; None for a dropped one."""
        try:
            outcome.format, pair = self.pair(source, raw)
            outcome.weight, outcome.margin = pair_numbers(raw, self.columns[source], outcome.format)
            outcome.prompt_key = prompt_key(pair.prompt)
        except RowDropped as dropped:
            outcome.format = dropped.format
            outcome.drop(dropped)
            return None
        except RecursionError:  # JSON of a thousand levels
            outcome.reason = "over_limits"
            return None
        return pair

    def __call__(self, chunk: Chunk) -> PoolPart:
        outcomes, converted = [], []
        for outcome, pair in self._outcomes(chunk):
            outcomes.append(outcome)
            if pair is not None:
                converted.append((outcome, pair))
        results = self.pair_tokenizer([pair for _, pair in converted])
        for (outcome, pair), result in zip(converted, results, strict=True):
            if isinstance(result, RowDropped):
                outcome.drop(result)
            else:
                outcome.marks = self._marks(pair, result)
                outcome.pair, outcome.said = _tokenized_pair(*result), pair
                outcome.num_prompt_tokens = result[0].num_prompt_tokens
        return self.part(chunk, outcomes)

    def _marks(self, pair: PreferencePair, sides: tuple[TokenizedSide, TokenizedSide]) -> RowMarks:
        prompt_left_out = any(side.prompt_left_out for side in sides)
        return RowMarks(
            truncated=any(side.truncated for side in sides),
            left_out=any(side.left_out for side in sides),
            prompt_left_out=prompt_left_out,
            replaced=pair.has_replaced,
            prompt_passed_by=pair.prompt_passed_by,
            prompt_repeated=repeats_prompt(pair),
            unnamed_role=not prompt_left_out and self.pair_tokenizer.renderer.leaves_unnamed(pair.prompt),
        )

    def part(self, chunk: Chunk, outcomes: list[_Outcome]) -> PoolPart:
        """Make the part of a chunk's rows as they turned out."""
        part = _part(chunk, outcomes)
        if self.examiner is None:
            return part
        return PoolPart(part.facts, part.tokens, self.examiner([outcome.said for outcome in outcomes]))


def _tokenized_pair(chosen: TokenizedSide, rejected: TokenizedSide) -> TokenizedPair:
    arrays = (chosen.ids, chosen.trained, rejected.ids, rejected.trained)
    return TokenizedPair(row_key(arrays), *arrays)


def _part(chunk: Chunk, outcomes: list[_Outcome]) -> PoolPart:
    pairs = [outcome.pair for outcome in outcomes]
    facts = pa.record_batch(
        [
            pa.array(np.full(len(outcomes), chunk.source, dtype=np.int32)),
            pa.array([o.row for o in outcomes], pa.int64()),
            pa.array([o.number for o in outcomes], pa.int32()),
            pa.array([o.format for o in outcomes], pa.string()),
            pa.array([o.reason for o in outcomes], pa.string()),
            pa.array([whole(o.detail) for o in outcomes], pa.string()),
            *(pa.array([o.marks[i] for o in outcomes], pa.bool_()) for i in range(len(RowMarks._fields))),
            pa.array([o.prompt_key for o in outcomes], pa.string()),
            pa.array([p.row_key if p else "" for p in pairs], pa.string()),
            pa.array(
                [common_prefix_length(p.chosen_ids, p.rejected_ids) if p else 0 for p in pairs], pa.int32()
            ),
            pa.array([len(p.chosen_ids) if p else 0 for p in pairs], pa.int32()),
            pa.array([len(p.rejected_ids) if p else 0 for p in pairs], pa.int32()),
            pa.array(
                [-1 if o.num_prompt_tokens is None else o.num_prompt_tokens for o in outcomes], pa.int32()
            ),
            pa.array([o.weight for o in outcomes], pa.float32()),
            pa.array([o.margin for o in outcomes], pa.float32()),
        ],
        schema=POOL_SCHEMA,
    )
    tokens = [
        part
        for p in pairs
        if p
        for part in (p.row_key.encode(), p.chosen_ids, p.rejected_ids, p.chosen_trained, p.rejected_trained)
    ]
    return PoolPart(facts, b"".join(tokens))  # type: ignore[arg-type]  # arrays are buffers; numpy says so from 3.12 on


def chunks_of(rows: Sequence[Sequence[int] | np.ndarray]) -> Iterator[Chunk]:
    """Yield chunks of each source's row numbers, which are distinct and ascending."""
    for source, numbers in enumerate(rows):
        for first in range(0, len(numbers), ROWS_PER_CHUNK):
            yield Chunk(source, np.asarray(numbers[first : first + ROWS_PER_CHUNK], dtype=np.int64))


def make_pool(
    maker: PoolMaker, chunks: Iterable[Chunk], num_rows: int, num_workers: int
) -> Iterator[PoolPart]:
    """Yield parts of ``chunks``, which hold ``num_rows`` rows, in order. The rows are the same for any number of
    workers.

    A row on which a worker is stuck, or that takes all memory, is dropped. Raises ``StepCrashed`` if a worker process dies
    otherwise, and ``CheckpointError`` if many rows are such.
    """
    if not can_fork():  # one process does the work; a row that no handler can end, ends it
        for chunk in chunks:
            with ended_if_stuck(SECONDS_PER_CHUNK):
                part = maker(chunk)
            yield part
        return
    num_workers = num_workers if num_rows >= MIN_ROWS_FOR_SEVERAL else 1
    chunks, left = iter(chunks), deque[Chunk]()
    while True:
        workers: Workers[Chunk, PoolPart] = Workers(maker, num_workers)
        try:
            yield from workers.results(chunks, left, SECONDS_PER_CHUNK)
            return
        except BrokenProcessPool as error:
            if not workers.went_over():
                raise workers.crashed() from error
        yield from _row_by_row(maker, left)
        left.clear()


def _row_by_row(maker: PoolMaker, chunks: Iterable[Chunk]) -> Iterator[PoolPart]:
    """Parts of a row each. One that ends its process is dropped, and another process goes on behind it."""
    left = deque(
        Chunk(chunk.source, chunk.rows[place : place + 1])
        for chunk in chunks
        for place in range(len(chunk.rows))
    )
    for _ in range(MAX_ROWS_OVER):
        workers: Workers[Chunk, PoolPart] = Workers(maker, 1)
        taken, rows = deque[Chunk](), list(left)
        try:
            for part in workers.results(iter(rows), taken, SECONDS_PER_ROW):
                left.popleft()
                yield part
            return
        except BrokenProcessPool as error:
            if not workers.went_over():
                raise workers.crashed() from error
        over = left.popleft()
        yield maker.part(over, [_Outcome(int(over.rows[0]), reason="over_limits")])
    raise CheckpointError(
        f"The tokenising process came to its end on each of {MAX_ROWS_OVER} rows: a row has "
        f"{SECONDS_PER_ROW:.0f} s of processor time and {MAX_MEMORY_BYTES >> 30} GiB. The checkpoint's "
        "tokenizer or chat template is not fit for use; choose another one (checkpoint.chat_template), or "
        "another checkpoint."
    )
