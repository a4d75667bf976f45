"""Step ``mix``: preference sets -> one tokenised, shuffled, split mixture with a ledger.

Rows are selected per source, converted and tokenised once each into a pool on disk, counted, split by prompt, and
gathered in the mixture's order. Memory holds a few chunks of rows and some numbers per row.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dpo_core.contract.amount import num_held_out
from dpo_core.contract.data_jobs import MixJob, MixResult, SourceLedger
from dpo_core.contract.errors import DataError
from dpo_core.contract.metric_names import source_names
from dpo_core.contract.progress import Progress
from dpo_core.contract.refs import DatasetRef, ResolvedSource
from dpo_core.contract.row_warnings import all_of, files_warning
from dpo_core.contract.store import canonical_json, fingerprint, hash_files, new_directory, write_json
from dpo_core.data.chat_template import template_sha256
from dpo_core.data.end_mark import end_mark_warning
from dpo_core.data.evaluation_sets import EvaluationSets
from dpo_core.data.held_out_prompts import write_prompts
from dpo_core.data.held_out_sets import HeldOutPrompts, write_keys
from dpo_core.data.known_positions import check_positions
from dpo_core.data.known_tokens import rows_fewer_than_tokens
from dpo_core.data.ledger import SourceTally, check_drops, check_left
from dpo_core.data.lengths import length_stats
from dpo_core.data.mixing import Selection, select_rows, split_rows
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.data.pair_file import ROWS_FILE, ROWS_PER_BATCH, ROWS_SCHEMA, SOURCES_FILE
from dpo_core.data.pair_numbers import NO_WEIGHT
from dpo_core.data.pool import PoolMaker, chunks_of, make_pool
from dpo_core.data.pool_file import PoolReader, open_pool
from dpo_core.data.quality import Accounts, Looks, examiner_for
from dpo_core.data.ranked_answers import ranked_answers
from dpo_core.data.row_files import passed_by
from dpo_core.data.row_samples import row_samples
from dpo_core.data.sources import RowStore, loading
from dpo_core.data.tokenize import PairTokenizer, TokenizeRules
from dpo_core.data.tokenizer import load_tokenizer

LEDGER_FILE, DATA_DIR = "ledger.json", "data"


def run(job: MixJob, progress: Progress) -> MixResult:
    """Write ``data/`` and ``ledger.json`` below ``job.out_dir``. Raises ``DataError`` for data that cannot be used,
    ``CheckpointError`` and ``ConfigError`` for tokenizer, template and model, ``RemoteError`` when the Hub does not answer.
    """
    day = date.fromisoformat(job.template_date) if job.template_date else date.today()
    with loading(job.sources, job.cache_dir) as rows:  # goes on while the tokenizer is loaded
        pair_tokenizer = _pair_tokenizer(job, day)
        stores = _stores(job, rows(), progress)
    selections = [
        select_rows(source.amount, len(store)) for source, store in zip(job.sources, stores, strict=True)
    ]
    sets = EvaluationSets(job.evaluation_sets, job.quality, job.cache_dir) if job.evaluation_sets else None
    apart = HeldOutPrompts(job.apart_from) if job.apart_from else None
    maker = PoolMaker(
        tuple(stores),
        tuple(source.columns for source in job.sources),
        pair_tokenizer,
        examiner_for(job.quality, sets),
        template_kwargs=tuple(source.chat_template_kwargs for source in job.sources),
        ranked=tuple(ranked_answers(source, job.seed) for source in job.sources),
    )
    with new_directory(job.out_dir / DATA_DIR) as aside:
        tallies = _fill_pool(job, aside, maker, selections, progress)
        ledgers = _write_ledger(job, tallies, selections)
        check_drops(ledgers, job.max_dropped_fraction, [store.columns for store in stores])
        with PoolReader(aside) as pool:
            accounts = Accounts(job.sources, tallies, selections, maker, sets, apart)
            for found in Looks(job.quality, maker, sets, apart)(pool):
                accounts.tell(found, pool)
            accounts.compare_lengths(pool)
            ledgers = _write_ledger(job, tallies, selections)
            check_left(ledgers)
            train, held_out = _split(job, pool, selections, aside)
            progress.begin("writing", total=len(train) + len(held_out), unit="pairs")
            _gather(pool, train, aside / "train", progress)
            _gather(pool, held_out, aside / "held_out", progress)
            write_prompts(maker, pool, held_out, aside / "held_out", job.num_workers)
            write_json(aside / SOURCES_FILE, _source_names(job))
        splits = [PairDataset.open(aside, "train"), PairDataset.open(aside, "held_out")]
        content, lengths, files = _content(splits, job), length_stats(splits), hash_files(aside)
        checked = sum(bool(json.loads(one)) for one in splits[1].prompt_column("constraints"))
        check_positions(job.tokenizer_path, lengths.max_sequence)
        samples = tuple(row_samples(pair_tokenizer.tokenizer, splits[0], _source_names(job)))
    return MixResult(
        job_fingerprint=job.fingerprint,
        data=DatasetRef(path=job.out_dir / DATA_DIR, fingerprint=content, files=files),
        train_rows=len(train),
        held_out_rows=len(held_out),
        held_out_checked=checked,
        per_source=tuple(ledgers),
        lengths=lengths,
        chat_template_sha256=template_sha256(pair_tokenizer.tokenizer),
        template_date=day.isoformat() if pair_tokenizer.renderer.clock else None,
        warnings=tuple(dict.fromkeys(said for ledger in ledgers for said in ledger.warnings)),
        evaluation_sets=accounts.overlaps(),
        samples=samples,
    )


def _pair_tokenizer(job: MixJob, day: date) -> PairTokenizer:
    tokenizer = load_tokenizer(job.tokenizer_path, job.chat_template, add_bos=job.add_bos)
    num_rows = rows_fewer_than_tokens(tokenizer, job.tokenizer_path)
    rules = TokenizeRules(job.max_length_tokens, job.when_too_long, job.train_on, num_rows)
    return PairTokenizer(tokenizer, rules, day)


def _stores(job: MixJob, rows: Iterator[RowStore], progress: Progress) -> list[RowStore]:
    progress.begin("reading", total=len(job.sources), unit="sources")
    stores = []
    for store in rows:
        stores.append(store)
        progress.advance()
    return stores


def _write_ledger(job: MixJob, tallies: list[SourceTally], selections: list[Selection]) -> list[SourceLedger]:
    ledgers = [tally.close(len(rows)) for tally, rows in zip(tallies, selections, strict=True)]
    write_json(job.out_dir / LEDGER_FILE, [ledger.model_dump(mode="json") for ledger in ledgers])
    return ledgers


def _fill_pool(
    job: MixJob, folder: Path, maker: PoolMaker, selections: list[Selection], progress: Progress
) -> list[SourceTally]:
    """Tokenise every selected row once into a pool in ``folder``, counting each as often as it was selected."""
    end_mark = end_mark_warning(maker.pair_tokenizer)
    tallies = [
        SourceTally(source, len(store), tuple(all_of(end_mark, _files_warning(source))))
        for source, store in zip(job.sources, maker.stores, strict=True)
    ]
    rows = [selection.distinct for selection in selections]
    num_rows = sum(map(len, rows))
    progress.begin("tokenising", total=num_rows, unit="rows")
    with open_pool(folder) as write:
        for part in make_pool(maker, chunks_of(rows), num_rows, job.num_workers):
            write(part)
            source, numbers = part.facts.column("source")[0].as_py(), part.facts.column("row").to_numpy()
            tallies[source].add(part.facts, selections[source].times(numbers))
            progress.advance(int(np.count_nonzero(part.facts.column("number").to_numpy() == 0)))
    return tallies


def _files_warning(source: ResolvedSource) -> str | None:
    return files_warning(source.label, *passed_by(source.path, source.split)) if source.path else None


def _kept_places(pool: PoolReader, selections: list[Selection]) -> np.ndarray:
    """Places in the pool of the kept rows, source by source in the order selected, int64 [N]."""
    places = []
    for source, selection in enumerate(selections):
        place = pool.places_of(source, selection.order())
        places.append(place[pool.is_kept[place]])
    return np.concatenate(places).astype(np.int64, copy=False)


def _split(
    job: MixJob, pool: PoolReader, selections: list[Selection], folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Places in the pool of the training and of the held-out rows, int64 [n] both, each in its order.

    Of sets all is held out, and the keys of their prompts are left in ``folder``.
    """
    places = _kept_places(pool, selections)
    prompt_keys = pool.prompt_keys()[places]
    if not job.set_names:
        _check_held_out(job, prompt_keys)
    train, held_out = split_rows(prompt_keys, "1.0" if job.set_names else job.held_out, job.seed)
    if job.set_names:
        write_keys(folder, prompt_keys[held_out])
    return places[train], places[held_out]


def _check_held_out(job: MixJob, prompt_keys: np.ndarray) -> None:
    """Raise ``DataError`` if no prompt would be left to train on."""
    num_prompts = len(np.unique(prompt_keys))
    if (wanted := num_held_out(job.held_out, num_prompts)) >= num_prompts:
        raise DataError(
            f"held_out = {job.held_out} asks for {wanted} prompts, and the mixture has {num_prompts} "
            'different ones, so nothing would be left to train on. Lower `held_out` ("0" holds out none) '
            "or add data."
        )


def _gather(pool: PoolReader, places: np.ndarray, folder: Path, progress: Progress) -> None:
    """Write the pool's rows at ``places``, in that order, as a split."""
    folder.mkdir()
    with pa.OSFile(str(folder / ROWS_FILE), "wb") as sink, pa.ipc.new_file(sink, ROWS_SCHEMA) as writer:
        for first in range(0, len(places), ROWS_PER_BATCH):
            batch = places[first : first + ROWS_PER_BATCH]
            writer.write_batch(pool.batch(batch))
            progress.advance(len(batch))


def _source_names(job: MixJob) -> list[str]:
    """What metrics call the sources; of a local file its name alone, as metrics may be sent elsewhere. Sets have names."""
    if job.set_names:
        return list(job.set_names)
    return source_names([source.path.name if source.path else source.label for source in job.sources])


def _content(splits: list[PairDataset], job: MixJob) -> str:
    """Fingerprint over the row keys of both splits in order and what the held-out prompts ask and verify, with the pairs'
    weights and margins where any differ from none, and of sets their names and which pair is of which.

    That is ``fingerprint({"rows": [[key, ...], [key, ...]], "prompts": [ids, ...], "constraints": [[...], ...]})``,
    hashed piece by piece.
    """
    _, held_out = splits
    digest = hashlib.sha256()

    def add_list(items: Iterable[Any]) -> None:
        digest.update(b"[")
        for number, item in enumerate(items):
            digest.update(b"," * (number > 0) + canonical_json(item).encode())
        digest.update(b"]")

    digest.update(b'{"constraints":')
    add_list(map(json.loads, held_out.prompt_column("constraints")))
    digest.update(b',"prompts":')
    add_list(held_out.prompt_column("prompt_ids"))
    digest.update(b',"rows":[')
    for number, split in enumerate(splits):
        digest.update(b",[" if number else b"[")
        for first in range(0, len(split), ROWS_PER_BATCH):
            keys = split.row_keys[first : first + ROWS_PER_BATCH].tolist()
            digest.update(b'"' + b'","'.join(keys) + b'"' if first == 0 else b',"' + b'","'.join(keys) + b'"')
        digest.update(b"]")
    digest.update(b"]}")
    rows = digest.hexdigest()
    numbers = {
        name: np.concatenate([getattr(split, name) for split in splits]).astype("<f4")
        for name in ("weights", "margins")
    }
    if np.all(numbers["weights"] == NO_WEIGHT) and np.all(np.isnan(numbers["margins"])):
        numbers = {}
    if job.set_names:
        numbers["sources"] = held_out.sources.astype("<i4")
    more: dict[str, Any] = {name: hashlib.sha256(of.tobytes()).hexdigest() for name, of in numbers.items()}
    more |= {"sets": job.set_names} if job.set_names else {}
    return fingerprint({"rows": rows, **more}) if more else rows
