"""Step ``reference``: what the reference model thinks of every row, computed once for all runs that share the model.

Rows that the cache has are not computed. The others are sorted by length, longest first (memory fails in the first
minute or not at all), cut by token budget and written in shards as they come: a killed run goes on at the last shard,
with the same batches as if it had not been killed.

Jobs that do not know each other may fill the cache first, each with its share of the batches (``run_share``): they agree on
the batches in ``dpo_core.data.agreed_rows``, and the pass that follows takes what is there and computes what is not.
"""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from dpo_core.contract.config import ForwardLayout
from dpo_core.contract.errors import CheckpointError, ConfigError, NonFinite
from dpo_core.contract.float8 import ModelCode
from dpo_core.contract.jobs import ReferenceJob, ReferenceResult
from dpo_core.contract.progress import Progress
from dpo_core.contract.reference_folder import model_cache_folder
from dpo_core.contract.refs import ReferenceRef
from dpo_core.contract.store import hash_files, new_directory
from dpo_core.data.agreed_rows import AgreedRows, agree, forget_agreed, read_agreed
from dpo_core.data.order import Microbatch, batches_by_tokens, forward_tokens, share_of_rank
from dpo_core.data.pair_batch import collate
from dpo_core.data.pair_dataset import PairDataset, Split
from dpo_core.data.reference_cache import ReferenceCache, ReferenceRows, write_aligned, write_shard
from dpo_core.engine.choose import load_for_scoring
from dpo_core.engine.distributed import (
    by_every_rank,
    data_rank,
    from_main,
    is_first_of_share,
    start_accelerator,
)
from dpo_core.engine.heartbeat import watched_ranks
from dpo_core.engine.meeting import meet
from dpo_core.model.all_weights import model_of_all_weights
from dpo_core.model.export_form import num_embedding_rows
from dpo_core.training.scores import Scoring, agreed_layout
from dpo_core.training.whole_weights import share_for_scoring_within_machines

log = logging.getLogger(__name__)

SPLITS: tuple[Split, ...] = ("train", "held_out")


def _rows_to_compute(dataset: PairDataset, cache: ReferenceCache) -> list[int]:
    """One row number per key that the cache lacks, longest pair first, ties by row number."""
    missing = np.flatnonzero(cache.is_missing(dataset.row_keys))
    _, first = np.unique(dataset.row_keys[missing], return_index=True)
    rows = missing[np.sort(first)]
    return rows[np.argsort(-dataset.lengths[rows].sum(axis=1), kind="stable")].tolist()


def _check_ids(datasets: dict[Split, PairDataset], model: PreTrainedModel, job: ReferenceJob) -> None:
    """Raise ``CheckpointError`` for a row with a token that the model has no row for: on a card its forward would end in an
    assertion that names nothing."""
    largest, rows = max(data.largest_id() for data in datasets.values()), num_embedding_rows(model)
    if largest >= rows:
        raise CheckpointError(
            f"The mixture has the token {largest}, and the embedding of {job.checkpoint.source} has {rows} rows. The "
            "reference must read what the policy reads: name a checkpoint with its tokenizer (reference.source)."
        )


@dataclass(frozen=True, slots=True)
class ToCompute:
    """Rows that the cache lacks, and what was agreed on where jobs of an array have filled it."""

    missing: dict[Split, list[int]]
    agreed: AgreedRows | None

    @property
    def num_missing(self) -> int:
        return sum(map(len, self.missing.values()))

    def batches(
        self, split: Split, data: PairDataset, layout: ForwardLayout, job: ReferenceJob
    ) -> list[list[int]]:
        """Return the forwards over the missing rows: those that were agreed on, whole if any of their rows is missing, then
        those of the others."""
        missing = self.missing[split]
        if self.agreed is None:
            return _cut(missing, data, layout, job)
        rows = self.agreed.rows[split]
        known = set(rows)
        others = [row for row in missing if row not in known]
        agreed = _lacking(_cut(rows, data, self.agreed.layout, job), missing)
        return agreed + _cut(others, data, layout, job)


def _lacking(batches: list[list[int]], missing: Sequence[int]) -> list[list[int]]:
    """Those of which a row is missing, whole."""
    lacking = set(missing)
    return [batch for batch in batches if not lacking.isdisjoint(batch)]


def _cut(rows: Sequence[int], data: PairDataset, layout: ForwardLayout, job: ReferenceJob) -> list[list[int]]:
    lengths = forward_tokens(data.lengths, data.prefix_lengths, layout)
    return batches_by_tokens(rows, lengths, job.tokens_per_batch, layout=layout)


def _to_compute(datasets: dict[Split, PairDataset], folder: Path, job: ReferenceJob) -> ToCompute:
    agreed = read_agreed(job)  # before the cache: its rows may come meanwhile
    cache = ReferenceCache(folder)
    return ToCompute({split: _rows_to_compute(data, cache) for split, data in datasets.items()}, agreed)


def _without_gradients(job: ReferenceJob) -> contextlib.AbstractContextManager:
    # torchao knows no inference mode.
    return torch.inference_mode() if job.float8 == "none" else torch.no_grad()


def _compute(
    scoring: Scoring,
    dataset: PairDataset,
    batches: list[Microbatch],
    folder: Path,
    job: ReferenceJob,
    progress: Progress,
) -> list[str]:
    """Score batches and write a shard to ``folder`` whenever ``rows_per_shard`` rows are done. -> the shards' names"""
    scorer, layout, accelerator = scoring
    written: list[str] = []
    is_first, num_shares = is_first_of_share(accelerator), data_rank(accelerator)[1]
    keys: list[bytes] = []
    done: list[ReferenceRows] = []
    for number, (rows, weights) in enumerate((cut.rows, cut.weights) for cut in batches):
        batch = collate([dataset[row] for row in rows], rows, layout).to(accelerator.device)
        scores = scorer(batch)
        scored = ReferenceRows(
            *(
                values.view(-1, 2).cpu().numpy()
                for values in (scores.sums_S, batch.tokens_2B.int(), scores.tails_S)
            )
        )
        if not np.isfinite(scored.sums).all():
            bad = [rows[i] for i in np.flatnonzero(~np.isfinite(scored.sums).all(axis=1))]
            raise NonFinite(
                f"The reference model gives no finite log-probability for rows {bad[:10]} of {dataset.folder}. "
                "Check the checkpoint's weights, or use train.precision fp32."
            )
        if any(weights) and is_first:  # a filler's rows are another rank's
            keys += [dataset.row_keys[row] for row in rows]
            done.append(scored)
        # The ranks keep pace.
        progress.advance(min(len(rows) * num_shares, progress.total - progress.done))
        if len(keys) >= job.rows_per_shard or (keys and number == len(batches) - 1):
            written.append(write_shard(folder, keys, ReferenceRows.concatenate(done)).name)
            keys, done = [], []
    return written


def _scoring(job: ReferenceJob, datasets: dict[Split, PairDataset], accelerator: Accelerator) -> Scoring:
    """The model on this process's card, and the layout that all ranks agreed on for it."""
    sharding = job.sharding.for_scoring
    from_main(accelerator, lambda: _check_weights(job))
    scorer = load_for_scoring(
        job.checkpoint, job.precision, sharding, accelerator, job.base_weights, ModelCode.of(job)
    )
    _check_ids(datasets, scorer.model, job)
    tried_on = (
        datasets["train"] if len(datasets["train"]) else datasets["held_out"]
    )  # of sets all is held out
    return Scoring(scorer, agreed_layout(scorer, tried_on, job, accelerator), accelerator)


def _check_weights(job: ReferenceJob) -> None:
    """Raise ``CheckpointError`` for files that are not all of one language model: of a reference by itself
    (reference.source) nobody has looked."""
    model_of_all_weights(job.checkpoint, torch.bfloat16)


def run(job: ReferenceJob, progress: Progress) -> ReferenceResult:
    """Fill the cache for both splits and write the values aligned with the mixture's rows."""
    with watched_ranks(job):
        return _fill_and_align(job, progress)


def _fill_and_align(job: ReferenceJob, progress: Progress) -> ReferenceResult:
    accelerator = start_accelerator(job.sharding.for_scoring)
    share_for_scoring_within_machines(job, accelerator)
    datasets = {split: PairDataset.open(job.data.path, split) for split in SPLITS}
    folder = model_cache_folder(job)
    # One looks, as another run may write to the folder meanwhile, and a node may see it late: ranks with other lists would
    # have other batches, and wait for each other.
    to_compute = from_main(accelerator, lambda: _to_compute(datasets, folder, job))
    num_rows, num_missing = sum(map(len, datasets.values())), to_compute.num_missing
    progress.begin("reference", num_rows, "pairs", done=num_rows - num_missing)
    agreed = to_compute.agreed
    layout: ForwardLayout = job.forward if agreed is None else agreed.layout
    written: list[str] = []
    if num_missing:
        scoring = _scoring(job, datasets, accelerator)
        layout = scoring.layout
        progress.begin("reference", num_rows, "pairs", done=num_rows - num_missing)
        for split, data in datasets.items():
            batches = to_compute.batches(split, data, layout, job)
            mine = share_of_rank(batches, *data_rank(accelerator), scoring.scorer.is_split)
            with _without_gradients(job):
                written += _compute(scoring, data, mine, folder, job, progress)
    of_all = chain.from_iterable(by_every_rank(accelerator, lambda *_: written))
    path, files = job.out_dir / "reference", {}
    if accelerator.is_main_process:
        cache = ReferenceCache(folder, of_all)
        with new_directory(path) as aside:
            for split, data in datasets.items():
                write_aligned(aside / f"{split}.npz", data.row_keys, cache.look_up(data.row_keys))
            files = hash_files(aside)
        forget_agreed(job)
    meet(accelerator)
    reference = ReferenceRef(path=path, fingerprint=job.fingerprint, files=files)
    return ReferenceResult(
        job_fingerprint=job.fingerprint,
        reference=reference,
        rows=num_rows,
        rows_computed=num_missing if agreed is None else sum(map(len, agreed.rows.values())),
        pairs_per_second=progress.rate(),
        forward=layout,
    )


def run_share(job: ReferenceJob, share: int, num_shares: int, progress: Progress) -> None:
    """Fill the cache with one share of the batches, from 0 on; nothing is computed of what is there.

    Raises ``ConfigError`` if this node's forward is not the one that was agreed on: its batches would be others'.
    """
    accelerator = start_accelerator(job.sharding.for_scoring)
    datasets = {split: PairDataset.open(job.data.path, split) for split in SPLITS}
    folder = model_cache_folder(job)
    to_compute, scoring = _to_compute(datasets, folder, job), None
    if (agreed := to_compute.agreed) is None:
        if not to_compute.num_missing:
            return
        scoring = _scoring(job, datasets, accelerator)
        agreed = agree(job, AgreedRows(scoring.layout, to_compute.missing))
    batches = {
        split: _cut(agreed.rows[split], data, agreed.layout, job)[share::num_shares]
        for split, data in datasets.items()
    }
    mine = {split: _lacking(cut, to_compute.missing[split]) for split, cut in batches.items()}
    num_rows, num_mine = (
        sum(len(batch) for cut in cuts.values() for batch in cut) for cuts in (batches, mine)
    )
    if not num_mine:
        return
    scoring = scoring or _scoring(job, datasets, accelerator)
    if scoring.layout != agreed.layout:
        raise ConfigError(
            f"Share {share} of the reference pass would compute with train.forward {scoring.layout}, and the others do with "
            f"{agreed.layout}: its node has another card or other packages.",
            "Set train.forward to the plainer of the two, or name nodes of one kind (slurm.constraint).",
        )
    progress.begin("reference", num_rows, "pairs", done=num_rows - num_mine)
    for split, data in datasets.items():
        with _without_gradients(job):
            _compute(scoring, data, share_of_rank(mine[split], 0, 1, in_step=False), folder, job, progress)
