"""The plain way's logits: a model's own, of the tokens that are asked for, and few enough of them that any card has room.

All logits of one pair of 16,384 tokens with a vocabulary of 100,278 are 6.6 GB in bf16, and four times that until they are
log-probabilities: more than a training of such pairs takes.

Shapes: R rows, T tokens, N predicted tokens, K places in a row.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dpo_core.contract.step_memory import CARD_CHUNK_LOGITS
from dpo_core.data.pair_batch import PairBatch
from dpo_core.data.pairs import TokenizedPair

PROBED_LOGITS = (
    CARD_CHUNK_LOGITS  # of a comparison of layouts; as a forward's chunk, that memory is counted for
)
FEWEST = 16  # trained tokens of a side that are compared, whatever the vocabulary


def of_predictors(model: PreTrainedModel, batch: PairBatch) -> tuple[dict[str, Tensor], Tensor]:
    """Return what a padded batch's forward is given so that it makes the logits of places that predict alone, and where a
    predictor's are in them then, int64 [N]; nothing, and all logits [R * T], of a model that cannot choose."""
    known = inspect.signature(model.forward).parameters.get("logits_to_keep")
    if known is None or "Tensor" not in str(known.annotation):
        return {}, batch.predictor_N
    width = batch.ids_RT.shape[1]
    places_K, at_N = torch.unique(batch.predictor_N % width, return_inverse=True)
    return {"logits_to_keep": places_K}, batch.predictor_N // width * len(places_K) + at_N


def thinned(pairs: Sequence[TokenizedPair], vocab_size: int) -> list[TokenizedPair]:
    """Return the same pairs with so many of their trained tokens that the logits of one are ``PROBED_LOGITS`` at most:
    evenly over each side, its first and its last one among them."""
    most = max(
        FEWEST, PROBED_LOGITS // (4 * vocab_size)
    )  # two rows, and each of them has the other's places, too
    return [
        replace(
            pair,
            chosen_trained=_some(pair.chosen_trained, most),
            rejected_trained=_some(pair.rejected_trained, most),
        )
        for pair in pairs
    ]


def _some(trained_T: np.ndarray, most: int) -> np.ndarray:
    at = np.flatnonzero(trained_T)
    if len(at) <= most:
        return trained_T
    some_T = np.zeros_like(trained_T)
    some_T[at[np.linspace(0, len(at) - 1, most).round().astype(int)]] = True
    return some_T
