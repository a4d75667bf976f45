"""A checkpoint as a scorer, and the log-probabilities of a set of pairs whose forwards are dealt to ranks.

Shapes: B pairs of a forward, N of the set.
"""

import gc
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from dpo_core.contract.config import ForwardLayout, TrainConfig
from dpo_core.contract.errors import OutOfMemory
from dpo_core.contract.float8 import ModelCode
from dpo_core.contract.jobs import EvaluateJob, ReferenceJob, TrainJob
from dpo_core.contract.quantities import ANSWERS_PER_BATCH
from dpo_core.contract.refs import CheckpointRef
from dpo_core.data.order import Microbatch, batches_by_tokens, forward_tokens, share_of_rank
from dpo_core.data.pair_batch import PairBatch, collate, to_device
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.data.pairs import TokenizedPair
from dpo_core.engine.choose import gather_whole, load_for_scoring
from dpo_core.engine.distributed import (
    agreed,
    by_every_rank,
    data_rank,
    sum_over_shares,
    tensor_degree,
    tokens_of_first,
)
from dpo_core.loss.pair_logps import PairLogps
from dpo_core.model.forward import PairScorer, choose_layout, pair_logps, probe_pairs
from dpo_core.model.generate import Generation
from dpo_core.training.whole_weights import fits_whole


class Pairs(Protocol):
    """A set of pairs that can be scored. ``lengths``: tokens of both sides, int [N, 2]; ``prefix_lengths``: int [N]."""

    @property
    def lengths(self) -> np.ndarray: ...

    @property
    def prefix_lengths(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> TokenizedPair: ...


class Scoring(NamedTuple):
    """How pairs are scored: by which model, in the layout that all ranks agreed on, on which ranks."""

    scorer: PairScorer
    layout: ForwardLayout
    accelerator: Accelerator


def load_scorer(checkpoint: CheckpointRef, job: EvaluateJob, accelerator: Accelerator) -> PairScorer:
    """Return a checkpoint ready for forwards without gradients, its weights shared out where the job's sharding splits
    them and one card has no room for all."""
    gc.collect()  # what shares a model out refers to itself: the one before would still be there
    scorer = load_for_scoring(
        checkpoint, job.precision, job.sharding.for_scoring, accelerator, code=ModelCode.of(job)
    )
    if scorer.is_split and fits_whole(scorer, job, accelerator):
        gather_whole(job.sharding, scorer)
    return scorer


def agreed_layout(
    scorer: PairScorer,
    dataset: PairDataset,
    job: ReferenceJob | EvaluateJob | TrainConfig,
    accelerator: Accelerator,
) -> ForwardLayout:
    """Return the layout for a job's forwards, tried on the set's own pairs. All ranks call it together, and what one of
    them cannot compute none does: ranks that cut the same pairs for different layouts would each compute other pairs, and
    where they share weights out, wait for each other in the next trial. Raises ``ConfigError`` naming each rank's."""

    def of_any(reason: str | None) -> str | None:
        return next(filter(None, by_every_rank(accelerator, lambda *_: reason)), None)

    pairs, device = probe_pairs(dataset), accelerator.device
    layout = choose_layout(scorer, pairs, job.forward, device, job.attention, of_any)
    return agreed(accelerator, "train.forward", layout)


def agreed_scoring(
    scorer: PairScorer, dataset: PairDataset, job: ReferenceJob | EvaluateJob, accelerator: Accelerator
) -> Scoring:
    """Return a scorer with its agreed layout. All ranks call it together."""
    return Scoring(scorer, agreed_layout(scorer, dataset, job, accelerator), accelerator)


def generation_of(job: EvaluateJob | TrainJob, scorer: PairScorer, accelerator: Accelerator) -> Generation:
    """Return how a job's answers are computed by a scorer's model.

    Ranks that compute together go on with what the first of them chose: two cards may differ in the last bit of a logit.
    """
    return Generation(
        job.evaluation.max_new_tokens,
        ANSWERS_PER_BATCH,
        prompt_tokens=job.evaluation.tokens_per_batch,
        agree=tokens_of_first(accelerator, scorer.is_split),
        # What back ends gather or exchange within a forward is no part of a graph; no training takes a failed trial's risk.
        may_record=isinstance(job, EvaluateJob)
        and not job.sharding.splits_weights
        and tensor_degree(accelerator) == 1,
    )


def batches_of_rank(
    scoring: Scoring, pairs: Pairs, rows: Sequence[int], job: EvaluateJob | TrainJob
) -> list[Microbatch]:
    """Return this rank's part of the forwards over ``rows``, cut in their order by the job's budget of tokens."""
    scorer, layout, accelerator = scoring
    lengths = forward_tokens(pairs.lengths, pairs.prefix_lengths, layout)
    batches = batches_by_tokens(rows, lengths, job.evaluation.tokens_per_batch, layout=layout)
    return share_of_rank(batches, *data_rank(accelerator), scorer.is_split)


@torch.no_grad()  # not inference mode: what FSDP2 gathers in it could not be gathered again outside it
def score_pairs(
    scoring: Scoring,
    pairs: Pairs,
    job: EvaluateJob | TrainJob,
    on_scored: Callable[[int], None] = lambda _: None,
    rows: np.ndarray | None = None,
) -> PairLogps:
    """Return log-probabilities of all pairs, or of ``rows`` (int64), in their order; scored longest first. All ranks call it
    together.

    ``on_scored`` is told how many pairs a forward of this rank had.
    """
    scorer, layout, accelerator = scoring
    rows_N = np.arange(len(pairs)) if rows is None else rows
    lengths = forward_tokens(pairs.lengths, pairs.prefix_lengths, layout)
    longest_first = rows_N[np.argsort(-lengths[rows_N], kind="stable")].tolist()

    def collated() -> Iterable[PairBatch]:
        for cut in batches_of_rank(scoring, pairs, longest_first, job):
            yield collate([pairs[row] for row in cut.rows], cut.rows, layout, cut.weights)
            on_scored(len(cut.rows))

    return score_all(scorer, accelerator, torch.from_numpy(rows_N).to(accelerator.device), collated())


def places(rows_N: Tensor, row_B: Tensor) -> Tensor:
    """Return where rows stand among distinct ``rows_N``, int64 [B], on the device of those."""
    return (to_device(row_B, rows_N.device)[:, None] == rows_N).int().argmax(dim=1)


@torch.no_grad()
def score_all(
    scorer: PairScorer, accelerator: Accelerator, rows_N: Tensor, batches: Iterable[PairBatch]
) -> PairLogps:
    """Return every pair of the set, in the order of its distinct row numbers, without gradient. All ranks call it
    together.

    ``batches`` are this rank's; each pair is in one of some rank's. Each rank fills its places, a sum does the rest. A rank
    without memory takes part in the sum before it says so: those that computed by themselves are waiting for it.
    """
    names = PairLogps.__slots__ if scorer.with_squares else PairLogps.__slots__[:-2]
    filled = torch.zeros(len(names), len(rows_N), dtype=torch.float64, device=accelerator.device)
    failure = None
    try:
        for batch in batches:
            batch = batch.to(accelerator.device)
            policy = pair_logps(scorer(batch), batch.tokens_2B)
            at_B, real_B = (
                places(rows_N, batch.row_B),
                batch.weight_B > 0,
            )  # a filler repeats another rank's row
            filled[:, at_B[real_B]] = torch.stack([getattr(policy, name) for name in names]).double()[
                :, real_B
            ]
    except OutOfMemory as error:
        if scorer.is_split or tensor_degree(accelerator) > 1:  # the others are in the same forward
            raise
        failure = error.with_traceback(None)  # its frames hold tensors
    total = sum_over_shares(accelerator, filled)
    if failure:
        raise failure
    return PairLogps(*total.float())
