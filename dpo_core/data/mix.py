"""Step ``mix``: preference sets -> one tokenised, shuffled, split mixture with a ledger.

Rows are selected per source, converted and tokenised once each into a pool on disk, counted, split by prompt, and
gathered in the mixture's order. Memory holds a few chunks of rows and some numbers per row.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from dpo_core.data.chat_template import load_tokenizer, template_sha256
from dpo_core.data.ledger import SourceTally, check_drops
from dpo_core.data.mixing import num_held_out, select_rows, split_rows
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.data.pair_file import (
    PROMPTS_FILE,
    PROMPTS_SCHEMA,
    ROWS_FILE,
    ROWS_PER_BATCH,
    ROWS_SCHEMA,
    ArrowRows,
    list_array,
    pairs_batch,
)
from dpo_core.data.pairs import PreferencePair, TokenizedPair
from dpo_core.data.pool import POOL_SCHEMA, PoolMaker, chunks_of, make_pool
from dpo_core.data.sources import load_source
from dpo_core.data.tokenize import PairTokenizer, TokenizeRules
from dpo_core.errors import DataError
from dpo_core.jobs import DatasetRef, MixJob
from dpo_core.progress import Progress
from dpo_core.results import LengthStats, MixResult, SourceLedger
from dpo_core.store import fingerprint, hash_files, new_directory, write_json

LEDGER_FILE, DATA_DIR, POOL_FILE = "ledger.json", "data", "pool.arrow"


@dataclass(frozen=True, slots=True)
class KeptRows:
    """The kept rows, concatenated source by source in the order selected, [N] each."""

    pool: np.ndarray  # int64, place in the pool
    source: np.ndarray  # int32
    row: np.ndarray  # int64, number in the source
    prompt_keys: list[str]


def run(job: MixJob, progress: Progress) -> MixResult:
    """Write ``data/`` and ``ledger.json`` below ``job.out_dir``.

    Raises ``DataError`` for data that cannot be used, ``CheckpointError`` and ``ConfigError`` for the tokenizer and its
    template, ``RemoteError`` when the Hub does not answer.
    """
    tokenizer = load_tokenizer(job.tokenizer_path, job.chat_template)
    rules = TokenizeRules(job.max_length_tokens, job.when_too_long, job.train_on)
    progress.begin("reading", total=len(job.sources), unit="sources")
    stores = []
    for source in job.sources:
        stores.append(load_source(source, job.cache_dir))
        progress.advance()
    selections = [select_rows(source.amount, len(store)) for source, store in zip(job.sources, stores, strict=True)]
    maker = PoolMaker(tuple(stores), tuple(source.columns for source in job.sources), PairTokenizer(tokenizer, rules))
    with new_directory(job.out_dir / DATA_DIR) as aside:
        pool_path = aside / POOL_FILE
        ledgers = _fill_pool(job, pool_path, maker, selections, progress)
        write_json(job.out_dir / LEDGER_FILE, [ledger.model_dump(mode="json") for ledger in ledgers])
        check_drops(ledgers, job.max_dropped_fraction, [store.columns for store in stores])
        kept = _kept_rows(ArrowRows(pool_path), selections)
        train, held_out = _split(job, kept.prompt_keys)
        progress.begin("writing", total=len(train) + len(held_out), unit="pairs")
        _gather(pool_path, kept.pool[train], aside / "train", progress)
        _gather(pool_path, kept.pool[held_out], aside / "held_out", progress)
        _write_prompts(maker, kept, held_out, aside / "held_out")
        pool_path.unlink()
        splits = [PairDataset.open(aside, "train"), PairDataset.open(aside, "held_out")]
        content, lengths, files = _content(splits), _length_stats(splits), hash_files(aside)
    return MixResult(
        job_fingerprint=job.fingerprint, data=DatasetRef(path=job.out_dir / DATA_DIR, fingerprint=content, files=files),
        train_rows=len(train), held_out_rows=len(held_out), per_source=tuple(ledgers), lengths=lengths,
        chat_template_sha256=template_sha256(tokenizer))


def _fill_pool(job: MixJob, path: Path, maker: PoolMaker, selections: list[np.ndarray],
               progress: Progress) -> list[SourceLedger]:
    """Tokenise every selected row once into ``path``, counting each as often as it was selected."""
    tallies = [SourceTally(source, len(store)) for source, store in zip(job.sources, maker.stores, strict=True)]
    times = [dict(zip(*(a.tolist() for a in np.unique(rows, return_counts=True)), strict=True)) for rows in selections]
    chunks = chunks_of(selections)
    progress.begin("tokenising", total=sum(len(chunk.rows) for chunk in chunks), unit="rows")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, POOL_SCHEMA) as writer:
        for batch in make_pool(maker, chunks, job.num_workers):
            writer.write_batch(batch)
            names = ("source", "row", "format", "reason", "truncated")
            for source, row, *fate in zip(*(batch.column(name).to_pylist() for name in names), strict=True):
                tallies[source].add(row, times[source][row], *fate)
            progress.advance(batch.num_rows)
    return [tally.close(len(rows)) for tally, rows in zip(tallies, selections, strict=True)]


def _kept_rows(pool: ArrowRows, selections: list[np.ndarray]) -> KeptRows:
    sources, rows = pool.column("source"), pool.column("row")
    is_kept = np.array([key != "" for key in pool.texts("row_key")], dtype=bool)
    prompt_keys = pool.texts("prompt_key")
    places = []
    for source, selection in enumerate(selections):
        start, end = np.searchsorted(sources, [source, source + 1])
        place = start + np.searchsorted(rows[start:end], selection)
        places.append(place[is_kept[place]] if len(place) else place)
    pool_places = np.concatenate(places).astype(np.int64)
    kept_keys = [prompt_keys[i] for i in pool_places.tolist()]
    return KeptRows(pool_places, sources[pool_places], rows[pool_places], kept_keys)


def _split(job: MixJob, prompt_keys: list[str]) -> tuple[np.ndarray, np.ndarray]:
    num_prompts = len(set(prompt_keys))
    if (wanted := num_held_out(job.held_out, num_prompts)) >= num_prompts:
        raise DataError(f"held_out = {job.held_out} asks for {wanted} prompts, and the mixture has {num_prompts} "
                        "different ones, so nothing would be left to train on. Lower `held_out` (\"0\" holds out none) "
                        "or add data.")
    return split_rows(prompt_keys, job.held_out, job.seed)


def _gather(pool_path: Path, places: np.ndarray, folder: Path, progress: Progress) -> None:
    """Write the pool's rows at ``places``, in that order, as a split."""
    pool = ArrowRows(pool_path)
    folder.mkdir()
    with pa.OSFile(str(folder / ROWS_FILE), "wb") as sink, pa.ipc.new_file(sink, ROWS_SCHEMA) as writer:
        for first in range(0, len(places), ROWS_PER_BATCH):
            batch = [int(place) for place in places[first:first + ROWS_PER_BATCH]]
            pairs = [TokenizedPair(pool.scalar("row_key", i), pool.ragged("chosen_ids", i),
                                   pool.ragged("chosen_trained", i), pool.ragged("rejected_ids", i),
                                   pool.ragged("rejected_trained", i)) for i in batch]
            writer.write_batch(pairs_batch(pairs, [pool.scalar("prefix_length", i) for i in batch]))
            progress.advance(len(batch))


def _write_prompts(maker: PoolMaker, kept: KeptRows, positions: np.ndarray, folder: Path) -> None:
    """Write what the evaluation asks: the held-out rows' prompts with the assistant's turn opened."""
    with (pa.OSFile(str(folder / PROMPTS_FILE), "wb") as sink, pa.ipc.new_file(sink, PROMPTS_SCHEMA) as writer):
        for first in range(0, len(positions), ROWS_PER_BATCH):
            batch = positions[first:first + ROWS_PER_BATCH]
            pairs = [maker.pair(int(kept.source[i]), int(kept.row[i]))[1] for i in batch]
            writer.write_batch(pa.record_batch([
                list_array(maker.pair_tokenizer.prompt_ids(pairs), np.int32),
                pa.array([_readable(pair) for pair in pairs], pa.string()),
                pa.array([json.dumps(list(pair.constraints), sort_keys=True) for pair in pairs], pa.string()),
            ], schema=PROMPTS_SCHEMA))


def _readable(pair: PreferencePair) -> str:
    """The user's last message, or the last turn that says something."""
    users = [turn["content"] for turn in pair.prompt if turn["role"] == "user" and turn["content"].strip()]
    return users[-1] if users else next((turn["content"] for turn in reversed(pair.prompt) if turn["content"]), "")


def _content(splits: list[PairDataset]) -> str:
    """Fingerprint over the row keys of both splits in order and what the held-out prompts ask and verify."""
    _, held_out = splits
    prompts = [held_out.prompt(i) for i in range(len(held_out))]
    return fingerprint({"rows": [split.row_keys for split in splits],
                        "prompts": [prompt.prompt_ids.tolist() for prompt in prompts],
                        "constraints": [prompt.constraints for prompt in prompts]})


def _length_stats(splits: list[PairDataset]) -> LengthStats:
    """Over both splits. A pair's prompt is counted up to where its two sides part."""
    lengths = np.concatenate([split.lengths for split in splits]).astype(np.int64)
    prefixes = np.concatenate([split.prefix_lengths for split in splits])
    prompt, chosen, rejected = prefixes.mean(), *(lengths - prefixes[:, None]).mean(axis=0)
    return LengthStats(
        mean_prompt=round(float(prompt), 1), mean_chosen=round(float(chosen), 1), mean_rejected=round(float(rejected), 1),
        max_sequence=int(lengths.max()), total=int(lengths.sum()))
