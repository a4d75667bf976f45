"""Rows as the trainer sees them: what the template made of a pair, and which of its tokens are trained."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from transformers import PreTrainedTokenizerBase

from dpo_core.contract.data_jobs import RowSample, TextSpan
from dpo_core.data.pair_dataset import PairDataset

ROWS, CHARACTERS = 20, 8000  # of a mixture; of a span, that is


def row_samples(
    tokenizer: PreTrainedTokenizerBase, pairs: PairDataset, labels: list[str]
) -> Iterator[RowSample]:
    """Yield the first rows of a split. ``labels``: the sources' names by their numbers."""
    for number in range(min(ROWS, len(pairs))):
        pair = pairs[number]
        yield RowSample(
            source=labels[pairs.sources[number]],
            chosen=tuple(_spans(tokenizer, pair.chosen_ids, pair.chosen_trained)),
            rejected=tuple(_spans(tokenizer, pair.rejected_ids, pair.rejected_trained)),
        )


def _spans(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray, trained: np.ndarray) -> Iterator[TextSpan]:
    """Cut token ids, int32 [T], where ``trained``, bool [T], changes."""
    cuts = [0, *(np.flatnonzero(np.diff(trained)) + 1).tolist(), len(ids)]
    for start, end in pairwise(cuts):
        text = str(tokenizer.decode(ids[start:end].tolist(), clean_up_tokenization_spaces=False))
        if len(text) > CHARACTERS:
            text = f"{text[: CHARACTERS // 2]} [... {len(text) - CHARACTERS:,} characters ...] {text[-CHARACTERS // 2 :]}"
        yield TextSpan(
            kind="trained" if trained[start] else "prompt" if start == 0 else "untrained", text=text
        )
