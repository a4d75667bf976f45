"""What a user asked to be looked for in the rows of a finished pool: which are found, what each is like, and which go.

The looks go from the surest to the vaguest; a row that goes is no longer there for the next one. Shapes: N rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dpo_core.contract.data_jobs import EvaluationOverlap, Finding
from dpo_core.contract.drops import DropReason
from dpo_core.contract.quality_config import QualityRules
from dpo_core.contract.refs import ResolvedSource
from dpo_core.data.duplicates import exact_duplicates
from dpo_core.data.evaluation_sets import EvaluationSets
from dpo_core.data.examine import Examiner
from dpo_core.data.held_out_sets import HeldOutPrompts
from dpo_core.data.ledger import MAX_OFFENDERS, SourceTally
from dpo_core.data.mixing import Selection
from dpo_core.data.near_duplicates import Sketcher, bands_for, likeness, near_duplicates
from dpo_core.data.pairs import PreferencePair, readable_prompt
from dpo_core.data.pool import PoolMaker
from dpo_core.data.pool_file import PoolReader

TEXT_CHARACTERS = 160
PAIRS_HELD = 4096  # rows that near duplicates are compared with, read once


def examiner_for(rules: QualityRules, sets: EvaluationSets | None) -> Examiner | None:
    """Make what looks at each row while it is converted; None where nothing needs it."""
    sketcher = (
        Sketcher(rules.near_ngram_words, rules.near_similarity, rules.duplicates_of == "prompt")
        if rules.near_duplicates != "keep"
        else None
    )
    return Examiner(sketcher, sets.index if sets else None) if sketcher or sets else None


@dataclass(frozen=True, slots=True)
class Found:
    """Rows that one look found, by their places in the pool."""

    reason: DropReason
    places: np.ndarray  # int64 [n], ascending
    like: np.ndarray  # int64 [n]: place of the row, or number of the evaluation instance, that each is like
    similarity: np.ndarray  # float32 [n]
    is_dropped: bool


@dataclass(frozen=True)
class Looks:
    """The looks that rules ask for."""

    rules: QualityRules
    maker: PoolMaker
    sets: EvaluationSets | None
    held_out: HeldOutPrompts | None = None  # of evaluation.sets

    def __call__(self, pool: PoolReader) -> Iterator[Found]:
        """Find rows, and leave those out of ``pool`` that are to go."""
        looks = [(self.held_out is not None, self._in_held_out_set)]
        looks += [(self.sets is not None, self._contaminated)]
        looks += [(self.rules.exact_duplicates != "keep", self._exact)]
        looks += [(self.rules.near_duplicates != "keep", self._near)]
        for is_asked, look in looks:
            if is_asked:
                found = look(pool)
                if found.is_dropped:
                    pool.leave_out(found.places)
                yield found

    def _groups(self, pool: PoolReader) -> np.ndarray:
        return pool.sources if self.rules.duplicates_across == "each_source" else np.zeros_like(pool.sources)

    def _in_held_out_set(self, pool: PoolReader) -> Found:
        """By the prompt, as the mixture's own held-out pairs are kept apart."""
        assert self.held_out is not None
        kept = np.flatnonzero(pool.is_kept)
        found, like = self.held_out.among(pool.prompt_keys()[kept])
        return Found("in_held_out_set", kept[found], like, np.ones(len(found), np.float32), is_dropped=True)

    def _contaminated(self, pool: PoolReader) -> Found:
        assert self.sets is not None
        places, like, shares = [], [], []
        for place, share, instances in pool.overlaps():
            self.sets.count(instances)
            places.append(place)
            like.append(instances[0])
            shares.append(share)
        return Found(
            "contaminated",
            np.array(places, dtype=np.int64),
            np.array(like, dtype=np.int64),
            np.array(shares, dtype=np.float32),
            self.rules.contaminated == "drop",
        )

    def _exact(self, pool: PoolReader) -> Found:
        keys = pool.row_keys() if self.rules.duplicates_of == "pair" else pool.prompt_keys()
        places, like = exact_duplicates(
            keys, pool.is_kept, self._groups(pool), self.rules.duplicate_kept == "last"
        )
        same = np.ones(len(places), dtype=np.float32)
        return Found("exact_duplicate", places, like, same, self.rules.exact_duplicates == "drop")

    def _near(self, pool: PoolReader) -> Found:
        assert self.maker.examiner is not None
        sketcher = self.maker.examiner.sketcher
        assert sketcher is not None

        @lru_cache(PAIRS_HELD)
        def parts(place: int) -> tuple[np.ndarray, ...]:
            return sketcher.parts(pair_at(self.maker, pool, place))

        order = np.flatnonzero(pool.is_kept)
        order = order[::-1] if self.rules.duplicate_kept == "last" else order
        places, like, similarity = near_duplicates(
            lambda number: pool.band(number)[order],
            bands_for(self.rules.near_similarity)[0],
            order,
            lambda left, right: likeness(parts(left), parts(right), self.rules.near_similarity),
            self.rules.near_similarity,
            self._groups(pool)[order],
        )
        return Found("near_duplicate", places, like, similarity, self.rules.near_duplicates == "drop")


def pair_at(maker: PoolMaker, pool: PoolReader, place: int) -> PreferencePair:
    """Read a kept row of the pool as it was converted."""
    here = slice(place, place + 1)
    return maker.pairs_at(pool.sources[here], pool.rows[here], pool.numbers[here])[0]


@dataclass(frozen=True, slots=True)
class Accounts:
    """Where found rows are told of: the sources' tallies, and what it takes to show a row."""

    sources: tuple[ResolvedSource, ...]
    tallies: list[SourceTally]
    selections: list[Selection]
    maker: PoolMaker
    sets: EvaluationSets | None
    held_out: HeldOutPrompts | None = None

    def tell(self, found: Found, pool: PoolReader) -> None:
        """Count found rows in their sources' tallies and show the first of each."""
        marks = pool.marks() if found.is_dropped else None
        for source, tally in enumerate(self.tallies):
            start, end = np.searchsorted(pool.sources, [source, source + 1])
            here = slice(*np.searchsorted(found.places, [start, end]))
            places = found.places[here]
            if not len(places):
                continue
            rows = pool.rows[places]
            times = self.selections[source].times(rows)
            tally.find(found.reason, rows, times, marks and tuple(mark[places] for mark in marks))
            for place, like, similarity in zip(
                places[:MAX_OFFENDERS].tolist(),
                found.like[here][:MAX_OFFENDERS].tolist(),
                found.similarity[here].tolist(),
                strict=False,
            ):
                name, row, text = self._other(found.reason, like, pool)
                tally.findings.append(
                    Finding(
                        reason=found.reason,
                        row=int(pool.rows[place]),
                        like=name,
                        like_row=row,
                        similarity=round(similarity, 3),
                        text=_short(readable_prompt(pair_at(self.maker, pool, place))),
                        like_text=text,
                        is_dropped=found.is_dropped,
                    )
                )

    def _other(self, reason: DropReason, like: int, pool: PoolReader) -> tuple[str, int, str]:
        """Set, row number and text of what a row is like."""
        if reason == "contaminated":
            assert self.sets is not None
            name, row, text = self.sets.instance(like)
            return name, row, _short(text)
        if reason == "in_held_out_set":
            assert self.held_out is not None
            name, row, text = self.held_out.pair(like)
            return name, row, _short(text)
        text = readable_prompt(pair_at(self.maker, pool, like))
        return self.sources[int(pool.sources[like])].label, int(pool.rows[like]), _short(text)

    def overlaps(self) -> tuple[EvaluationOverlap, ...]:
        """Say what was counted of each evaluation set."""
        return self.sets.overlaps() if self.sets else ()

    def compare_lengths(self, pool: PoolReader) -> None:
        """Count in the tallies how often the longer answer of a kept row is the chosen one."""
        for source, tally in enumerate(self.tallies):
            start, end = np.searchsorted(pool.sources, [source, source + 1])
            kept = start + np.flatnonzero(pool.is_kept[start:end])
            tally.compare_lengths(pool.lengths_N2[kept], self.selections[source].times(pool.rows[kept]))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= TEXT_CHARACTERS else text[: TEXT_CHARACTERS - 3] + "..."
