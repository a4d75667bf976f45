"""Which rows of each source, in which order, and which prompts are held out. Plain numpy; no row is read here.

Amounts, selection and order are open-instruct's (``DatasetConfig.select_samples``, ``Dataset.shuffle``), so the same
mixer list and seed give the same rows in the same order. Deviation: the held-out rows are taken before the shuffle.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpo_core.contract.amount import num_held_out, num_selected
from dpo_core.contract.errors import DataError

KEYS_AT_ONCE = 1 << 14  # Python objects in memory at a time
MOST_ROWS = 1 << 28  # of a source; their numbers alone take 2 GiB
SELECTION_SEED = 42  # open-instruct's dataset_config_seed; not the mixture's seed


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows of a source, in which order: whole passes, then a random choice without replacement.

    Whole passes take no memory, as every process that is forked holds what is here.
    """

    num_rows: int  # that the source has
    passes: int
    drawn: np.ndarray  # int32 [n], row numbers as they were drawn
    drawn_ascending: np.ndarray

    def __len__(self) -> int:
        return self.passes * self.num_rows + len(self.drawn)

    @property
    def distinct(self) -> Sequence[int] | np.ndarray:
        """The row numbers without repetitions, ascending."""
        return range(self.num_rows) if self.passes else self.drawn_ascending

    def times(self, rows: np.ndarray) -> np.ndarray:
        """Return how often each of some distinct row numbers is selected, int64 [n]."""
        sought = rows.astype(self.drawn_ascending.dtype)
        last = np.searchsorted(self.drawn_ascending, sought, side="right")
        return self.passes + last - np.searchsorted(self.drawn_ascending, sought)

    def order(self) -> np.ndarray:
        """Return the row numbers in the order selected, repetitions included, int64 [num_selected]."""
        return np.concatenate([np.tile(np.arange(self.num_rows), self.passes), self.drawn]).astype(np.int64)


def select_rows(amount: str, num_rows: int) -> Selection:
    """Return the rows that an amount asks for. Raises ``DataError`` for more of them than a mixture may hold."""
    wanted = num_selected(amount, num_rows)
    if wanted > MOST_ROWS:
        raise DataError(
            f"The amount {amount} of a set of {num_rows:,} rows asks for {wanted:,} rows, more than {MOST_ROWS:,}. Lower "
            "it; more passes over a mixture are `train.num_epochs`."
        )
    passes, rest = divmod(wanted, num_rows)
    drawn = np.zeros(0, dtype=np.int32)
    if rest:
        chosen = np.random.RandomState(SELECTION_SEED).choice(num_rows, size=rest, replace=False)
        drawn = chosen.astype(np.int32)
    return Selection(num_rows, passes, drawn, np.sort(drawn))


def shuffle_order(num_rows: int, seed: int) -> np.ndarray:
    """Return the permutation int64 [num_rows] that ``datasets.Dataset.shuffle(seed)`` applies."""
    return np.random.default_rng(seed).permutation(num_rows)


def held_out_prompts(prompt_keys: np.ndarray, amount: str, seed: int) -> np.ndarray:
    """Return the distinct prompts to hold out, in the order in which they were drawn, of the keys' type.

    The draw is by hash of seed and prompt: it depends neither on the rows' order nor, for a prompt drawn early, on what
    else the mixture holds.
    """
    distinct = np.unique(prompt_keys)
    wanted = num_held_out(amount, len(distinct))
    return distinct[_by_hash(distinct, seed)[:wanted]] if wanted else distinct[:0]


def _by_hash(keys: np.ndarray, seed: int) -> np.ndarray:
    """Order of the keys by SHA-256 of ``seed:key``, int64 [n]."""
    start = f"{seed}:".encode()
    digests = np.empty(len(keys), dtype="S32")
    for first in range(0, len(keys), KEYS_AT_ONCE):
        some = keys[first : first + KEYS_AT_ONCE].tolist()
        digests[first : first + len(some)] = [hashlib.sha256(start + key).digest() for key in some]
    return np.argsort(digests, kind="stable")


def split_rows(prompt_keys: np.ndarray, amount: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return positions (int64) of the training rows, shuffled, and of the held-out rows; ``prompt_keys`` are bytes, S
    [N].

    Held-out rows come prompt by prompt in the order drawn, every prompt once before any a second time, so that the
    first n rows are n different prompts.
    """
    drawn = held_out_prompts(prompt_keys, amount, seed)
    if not len(drawn):
        return shuffle_order(len(prompt_keys), seed), np.zeros(0, dtype=np.int64)
    by_key = np.argsort(drawn)
    place = np.searchsorted(drawn, prompt_keys, sorter=by_key)
    rank = by_key[np.minimum(place, len(drawn) - 1)]
    is_held_out = drawn[rank] == prompt_keys
    train, held_out = np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
    by_rank = np.argsort(rank[held_out], kind="stable")  # rows of one prompt stand together, in their order
    ranks, rows = rank[held_out][by_rank], held_out[by_rank]
    repetition = np.arange(len(rows)) - np.searchsorted(ranks, ranks)  # how often the prompt came before
    return train[shuffle_order(len(train), seed)], rows[np.lexsort((rows, ranks, repetition))]
