"""Near duplicates: rows whose prompts, chosen and rejected answers are each nearly the same words.

Rows are like each other by the share of their runs of words that both have (Jaccard), the least share of the three
parts: a long prompt with other answers is no duplicate. MinHash with bands (Broder 1997) finds the rows that are worth
comparing, and those are compared in full, so every row found is one. Of two rows just at the bound a comparison is made
with a chance of 99.5 % or more, of closer ones nearly always.

MinHash itself is the ten lines of ``minhash``. A library for them would be the larger part: datasketch brings scipy (100 MB
in every image), and hashes that change with a library's version would change which rows are found.

Rows are gone through in order and each is compared with those that stay, so the result depends on nothing but the rows.
"""

import hashlib
import json
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dpo_core.data.messages import beyond_text
from dpo_core.data.pairs import PreferencePair
from dpo_core.data.words import FACTOR, WordHashes, jaccard

NUM_HASHES, SEED = 128, 1
FEWEST_FOUND = 0.995  # of pairs whose similarity is just the bound
MAX_COMPARED = 64  # rows that stay and that one row is compared with; in practice it is one or two
VALUES_AT_ONCE = 512  # half a MB of products
_PERMUTATIONS = np.random.RandomState(SEED).randint(0, 1 << 63, (2, NUM_HASHES)).astype(np.uint64)
_FACTORS, _TERMS = _PERMUTATIONS[0] * np.uint64(2) + np.uint64(1), _PERMUTATIONS[1]
_PARTS = tuple(
    np.uint64(int.from_bytes(hashlib.blake2b(bytes([i]), digest_size=8).digest(), "little")) for i in range(3)
)


def bands_for(similarity: float) -> tuple[int, int]:
    """Choose the bands and the hashes in each: the most selective that find ``FEWEST_FOUND`` of the pairs at the bound."""
    for rows in range(NUM_HASHES, 1, -1):
        bands = NUM_HASHES // rows
        if 1 - (1 - similarity**rows) ** bands >= FEWEST_FOUND:
            return bands, rows
    return NUM_HASHES, 1


@dataclass(frozen=True)
class Sketcher:
    """Rows -> their words in runs of ``n``, and short sketches of those."""

    n: int
    similarity: float
    prompt_alone: bool
    _hashes: WordHashes = field(default_factory=WordHashes)

    def parts(self, pair: PreferencePair) -> tuple[np.ndarray, ...]:
        """Return the runs of words of prompt, chosen and rejected answer, each ascending uint64."""
        prompt = "\n".join(map(_said, pair.prompt))
        texts = [prompt] if self.prompt_alone else [prompt, _said(pair.chosen[-1]), _said(pair.rejected[-1])]
        return tuple(self._hashes.shingles(text, self.n) for text in texts)

    def bands(self, pairs: Sequence[PreferencePair]) -> np.ndarray:
        """Make a hash per band and row, uint64 [rows, bands]: rows that share one are worth comparing."""
        num_bands, rows = bands_for(self.similarity)
        hashes = np.stack([self._signature(pair) for pair in pairs]) if pairs else np.zeros((0, NUM_HASHES))
        hashes = hashes[:, : num_bands * rows].astype(np.uint64)
        by_band = np.zeros((len(pairs), num_bands), dtype=np.uint64)
        for i in range(rows):
            by_band = by_band * FACTOR + hashes[:, i::rows]
        return by_band

    def _signature(self, pair: PreferencePair) -> np.ndarray:
        tagged = [part ^ tag for part, tag in zip(self.parts(pair), _PARTS, strict=False)]
        return minhash(np.concatenate(tagged))


def likeness(left: Sequence[np.ndarray], right: Sequence[np.ndarray], bound: float = 0.0) -> float:
    """Compare two rows by the parts of theirs that are least alike, 0 to 1; below ``bound`` by the first that is below it,
    which is enough to tell them apart."""
    least = 1.0
    for parts in zip(left, right, strict=True):
        fewer, more = sorted(map(len, parts))
        if more and fewer / more < bound:  # no more than that can be shared
            return fewer / more
        least = min(least, jaccard(*parts))
        if least < bound:
            break
    return least


def minhash(values: np.ndarray) -> np.ndarray:
    """Take the least of each of ``NUM_HASHES`` permutations of hashes, uint64 [k] -> uint64 [NUM_HASHES].

    Two sets share a place of it with the chance of their Jaccard similarity. A permutation is a h + b mod 2^64, a odd.
    """
    least = np.full(NUM_HASHES, np.iinfo(np.uint64).max)
    for first in range(0, len(values), VALUES_AT_ONCE):
        some = values[first : first + VALUES_AT_ONCE, None]
        np.minimum(least, (some * _FACTORS + _TERMS).min(axis=0), out=least)
    return least


def _said(turn: dict) -> str:
    """All that a turn says: its text, its calls, its thoughts and what else the template reads of it."""
    if len(turn) == 2:
        return turn["content"]
    calls = turn.get("tool_calls")
    said = [*([calls] if calls else []), *beyond_text(turn).values()]
    texts = [
        one if isinstance(one, str) else json.dumps(one, sort_keys=True, ensure_ascii=False) for one in said
    ]
    return "\n".join([turn["content"], *texts])


def near_duplicates(
    bands: Callable[[int], np.ndarray],
    num_bands: int,
    order: np.ndarray,
    likeness: Callable[[int, int], float],
    similarity: float,
    groups: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find places that are at least ``similarity`` alike to an earlier one in ``order`` that stays.

    Returns the places ascending and the ones that they are like, int64 [n], and how alike they are, float32 [n].

    ``bands(i)``: band i of the places in ``order``, uint64 [len(order)]; ``groups``: int [len(order)], places of different
    groups are not compared.
    """
    shared, num_buckets = _shared_buckets(bands, num_bands, groups)
    stays = _Staying(num_buckets)
    found: list[tuple[int, int, float]] = []
    for position in np.flatnonzero((shared >= 0).any(axis=0)).tolist():
        place, buckets = int(order[position]), [b for b in shared[:, position].tolist() if b >= 0]
        earlier = {other: None for bucket in buckets for other in stays.of(bucket)}
        for other in list(earlier)[:MAX_COMPARED]:
            if (alike := likeness(place, other)) >= similarity:
                found.append((place, other, alike))
                break
        else:
            for bucket in buckets:
                stays.add(bucket, place)
    found.sort()
    places, like, alike_by = zip(*found, strict=True) if found else ((), (), ())
    return (
        np.array(places, dtype=np.int64),
        np.array(like, dtype=np.int64),
        np.array(alike_by, dtype=np.float32),
    )


class _Staying:
    """Places that stay, by their bucket. Most buckets come to hold one, which takes four bytes, as there are millions."""

    def __init__(self, num_buckets: int) -> None:
        self._first = array("i", [-1]) * num_buckets
        self._more: dict[int, list[int]] = {}

    def add(self, bucket: int, place: int) -> None:
        if self._first[bucket] < 0:
            self._first[bucket] = place
        else:
            self._more.setdefault(bucket, []).append(place)

    def of(self, bucket: int) -> Sequence[int]:
        """In the order in which they came."""
        first = self._first[bucket]
        return () if first < 0 else (first, *self._more.get(bucket, ()))


def _shared_buckets(
    bands: Callable[[int], np.ndarray], num_bands: int, groups: np.ndarray
) -> tuple[np.ndarray, int]:
    """Number of each band's and position's bucket where several share it, else -1, int32 [bands, positions]; and how many
    such buckets there are."""
    shared = np.full((num_bands, len(groups)), -1, dtype=np.int32)
    next_bucket = 0
    for i in range(num_bands):
        values = bands(i)
        order = np.lexsort((values, groups))
        begins = np.ones(len(order), dtype=bool)
        begins[1:] = (values[order[1:]] != values[order[:-1]]) | (groups[order[1:]] != groups[order[:-1]])
        bucket = np.cumsum(begins) - 1
        is_shared = np.bincount(bucket) > 1  # by bucket
        several = is_shared[bucket]
        number = np.cumsum(is_shared, dtype=np.int32) - 1
        shared[i, order[several]] = next_bucket + number[bucket[several]]
        next_bucket += int(is_shared.sum())
    return shared, next_bucket
