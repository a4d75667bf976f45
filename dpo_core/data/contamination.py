"""Overlap of prompts with evaluation sets by runs of words, as Tulu 3 measures it.

Tulu 3 (arXiv 2411.15124, section 3.2; open-instruct's ``decontamination/``, which searches the user's turns, each for
itself): a token of an evaluation instance matches where an 8-gram around it also stands in the turn; the instance
overlaps with the turn when more than half of its tokens match; of an instance with several fields the shares' mean counts.
An instance shorter than a run can match nothing. Here tokens are words (``words.py``), there spaCy's, which count
punctuation as well.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dpo_core.data.pairs import PreferencePair
from dpo_core.data.words import WordHashes, words_of


@dataclass(frozen=True, slots=True)
class Overlaps:
    """Instances that a row overlaps with beyond the bound, most first, and the largest share of any instance."""

    instances: list[int]
    share: float


NONE = Overlaps([], 0.0)


class EvaluationIndex:
    """Runs of words of all evaluation instances. Shapes: G runs, F fields of instances."""

    def __init__(self, instances: Iterable[list[str]], n: int, bound: float) -> None:
        """``instances``: the fields' texts of each."""
        self.n, self.bound, self._hashes = n, bound, WordHashes()
        self._lengths: list[int] = []  # by field, words
        self._instance: list[int] = []  # by field
        self._num_fields: list[int] = []  # by instance
        runs, fields, places = [], [], []
        self.too_short: list[int] = []
        for number, texts in enumerate(instances):
            self._num_fields.append(len(texts))
            found = [self._hashes.ngrams(words_of(text), n) for text in texts]
            if not any(map(len, found)):
                self.too_short.append(number)
            for text, hashes in zip(texts, found, strict=True):
                fields.append(np.full(len(hashes), len(self._lengths), dtype=np.int32))
                places.append(np.arange(len(hashes), dtype=np.int32))
                runs.append(hashes)
                self._lengths.append(max(1, len(words_of(text))))
                self._instance.append(number)
        all_runs = np.concatenate(runs) if runs else np.zeros(0, dtype=np.uint64)
        order = np.argsort(all_runs, kind="stable")
        self._runs = all_runs[order]  # uint64 [G], ascending
        self._fields = (np.concatenate(fields) if fields else np.zeros(0, np.int32))[order]  # int32 [G]
        self._places = (np.concatenate(places) if places else np.zeros(0, np.int32))[order]  # int32 [G]
        self.num_instances = len(self._num_fields)

    def overlaps(self, pair: PreferencePair) -> Overlaps:
        """Look for instances in the user's turns of the prompt, each for itself."""
        best: dict[int, float] = {}
        for turn in pair.prompt:
            if turn["role"] == "user":
                for instance, share in self._shares(turn["content"]).items():
                    best[instance] = max(share, best.get(instance, 0.0))
        if not best:
            return NONE
        over = sorted((-share, instance) for instance, share in best.items() if share > self.bound)
        return Overlaps([instance for _, instance in over], max(best.values()))

    def _shares(self, text: str) -> dict[int, float]:
        """Instance -> share of its words that stand in runs which the text holds, for all of which one does."""
        runs = np.unique(self._hashes.ngrams(words_of(text), self.n))
        first = np.searchsorted(self._runs, runs, "left")
        last = np.searchsorted(self._runs, runs, "right")
        hit = last > first
        if not hit.any():
            return {}
        at = np.concatenate([np.arange(i, j) for i, j in zip(first[hit], last[hit], strict=True)])
        fields = np.repeat(self._fields[at].astype(np.int64), self.n)
        words = (self._places[at][:, None] + np.arange(self.n)).ravel()
        matched = np.unique(fields << 32 | words) >> 32
        shares: dict[int, float] = {}
        for field, count in zip(*map(np.ndarray.tolist, np.unique(matched, return_counts=True)), strict=True):
            instance = self._instance[field]
            share = count / self._lengths[field] / self._num_fields[instance]
            shares[instance] = shares.get(instance, 0.0) + share
        return shares
