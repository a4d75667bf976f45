"""Which rows of each source, in which order, and which prompts are held out. Plain numpy; no row is read here.

Amounts, selection and order are open-instruct's (``DatasetConfig.select_samples``, ``Dataset.shuffle``), so the same
mixer list and seed give the same rows in the same order. Deviation: the held-out rows are taken before the shuffle.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

SELECTION_SEED = 42  # open-instruct's dataset_config_seed; not the mixture's seed


def num_selected(amount: str, num_rows: int) -> int:
    """Rows that ``amount`` asks for: with a "." a proportion of ``num_rows`` (rounded down), else a count."""
    return int(float(amount) * num_rows) if "." in amount else int(amount)


def select_rows(amount: str, num_rows: int) -> np.ndarray:
    """Row numbers, int64 [num_selected]: whole passes in order, then a random choice without replacement."""
    wanted = num_selected(amount, num_rows)
    passes, rest = divmod(wanted, num_rows)
    drawn = np.random.RandomState(SELECTION_SEED).choice(num_rows, size=rest, replace=False) if rest else []
    return np.concatenate([np.tile(np.arange(num_rows), passes), np.asarray(drawn, dtype=np.int64)]).astype(np.int64)


def shuffle_order(num_rows: int, seed: int) -> np.ndarray:
    """Permutation int64 [num_rows] that ``datasets.Dataset.shuffle(seed)`` applies."""
    return np.random.default_rng(seed).permutation(num_rows)


def num_held_out(amount: str, num_prompts: int) -> int:
    """Prompts to hold out of ``num_prompts``. A proportion above 0 holds out at least one where there are several."""
    if "." in amount:
        share = float(amount)
        return max(int(share * num_prompts), 1 if share > 0 and num_prompts > 1 else 0)
    return int(amount)


def held_out_prompts(prompt_keys: Sequence[str], amount: str, seed: int) -> list[str]:
    """The distinct prompts to hold out, in the order in which they were drawn.

    The draw is by hash of seed and prompt: it depends neither on the rows' order nor, for a prompt drawn early, on what
    else the mixture holds.
    """
    distinct = set(prompt_keys)
    ranked = sorted(distinct, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    return ranked[:num_held_out(amount, len(distinct))]


def split_rows(prompt_keys: Sequence[str], amount: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions (int64) of the training rows, shuffled, and of the held-out rows.

    Held-out rows come prompt by prompt in the order drawn, every prompt once before any a second time, so that the
    first n rows are n different prompts.
    """
    rank = {key: place for place, key in enumerate(held_out_prompts(prompt_keys, amount, seed))}
    train = np.array([i for i, key in enumerate(prompt_keys) if key not in rank], dtype=np.int64)
    seen: dict[str, int] = {}
    held_out = []
    for i, key in enumerate(prompt_keys):
        if key in rank:
            held_out.append((seen.get(key, 0), rank[key], i))
            seen[key] = seen.get(key, 0) + 1
    order = np.array([i for _, _, i in sorted(held_out)], dtype=np.int64)
    return train[shuffle_order(len(train), seed)], order
