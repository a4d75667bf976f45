"""A checkpoint as a scorer, and the log-probabilities of a set of pairs whose forwards are dealt to ranks.

Shapes: B pairs of a forward, N of the set.
"""

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import Tensor

from dpo_core.contract.config import Precision
from dpo_core.contract.jobs import Sharding
from dpo_core.contract.refs import CheckpointRef
from dpo_core.data.pair_batch import PairBatch
from dpo_core.engine.choose import loading, share_for_scoring
from dpo_core.engine.distributed import sum_over_ranks
from dpo_core.loss.losses import PairLogps
from dpo_core.model.forward import PairScorer, pair_logps
from dpo_core.model.load import load_model


def load_scorer(checkpoint: CheckpointRef, precision: Precision, sharding: Sharding, accelerator: Accelerator) -> PairScorer:
    """A checkpoint ready for forwards without gradients, its weights shared out where the sharding splits them."""
    sharding = sharding.for_scoring
    scorer = PairScorer(load_model(checkpoint, **loading(sharding, accelerator)), precision)
    return share_for_scoring(sharding, accelerator, scorer)


def places(rows_N: Tensor, row_B: Tensor) -> Tensor:
    """Where rows stand among distinct ``rows_N``, int64 [B], on the device of those."""
    return (row_B.to(rows_N.device, non_blocking=True)[:, None] == rows_N).int().argmax(dim=1)


@torch.no_grad()
def score_all(scorer: PairScorer, accelerator: Accelerator, rows_N: Tensor, batches: Iterable[PairBatch]) -> PairLogps:
    """Every pair of the set, in the order of its distinct row numbers, without gradient. All ranks call it together.

    ``batches`` are this rank's; each pair is in one of some rank's. Each rank fills its places, a sum does the rest.
    """
    fields = PairLogps.__slots__
    filled = torch.zeros(len(fields), len(rows_N), dtype=torch.float64, device=accelerator.device)
    for batch in batches:
        batch = batch.to(accelerator.device)
        policy = pair_logps(scorer(batch), batch.tokens_2B)
        at_B, real_B = places(rows_N, batch.row_B), batch.weight_B > 0  # a filler repeats another rank's row
        filled[:, at_B[real_B]] = torch.stack([getattr(policy, name) for name in fields]).double()[:, real_B]
    return PairLogps(*sum_over_ranks(accelerator, filled).float())
