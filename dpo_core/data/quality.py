"""What a user asked to be looked for in the rows of a finished pool: which are found, what each is like, and which go.

The looks go from the surest to the vaguest; a row that goes is no longer there for the next one. Shapes: N rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dpo_core.contract.data_jobs import Finding
from dpo_core.contract.drops import DropReason
from dpo_core.contract.quality_config import QualityConfig
from dpo_core.contract.refs import ResolvedSource
from dpo_core.data.duplicates import exact_duplicates
from dpo_core.data.ledger import MAX_OFFENDERS, SourceTally
from dpo_core.data.pairs import readable_prompt
from dpo_core.data.pool import PoolMaker
from dpo_core.data.pool_file import PoolReader

TEXT_CHARACTERS = 160


@dataclass(frozen=True, slots=True)
class Found:
    """Rows that one look found, by their places in the pool."""

    reason: DropReason
    places: np.ndarray  # int64 [n], ascending
    like: np.ndarray  # int64 [n], place of the row that each is like
    similarity: np.ndarray  # float32 [n]
    is_dropped: bool


def look(config: QualityConfig, pool: PoolReader) -> Iterator[Found]:
    """Find rows, and leave those out of ``pool`` that are to go."""
    if config.exact_duplicates != "keep":
        keys = pool.row_keys() if config.duplicates_of == "pair" else pool.prompt_keys()
        groups = pool.sources if config.duplicates_across == "each_source" else np.zeros_like(pool.sources)
        places, like = exact_duplicates(keys, pool.is_kept, groups, config.duplicate_kept == "last")
        found = Found(
            "exact_duplicate",
            places,
            like,
            np.ones(len(places), np.float32),
            config.exact_duplicates == "drop",
        )
        if found.is_dropped:
            pool.leave_out(places)
        yield found


@dataclass(frozen=True, slots=True)
class Accounts:
    """Where found rows are told of: the sources' tallies, and what it takes to show a row."""

    sources: tuple[ResolvedSource, ...]
    tallies: list[SourceTally]
    times: list[np.ndarray]  # per source, how often each of its rows in the pool was selected, int [n]
    maker: PoolMaker

    def tell(self, found: Found, pool: PoolReader) -> None:
        """Count found rows in their sources' tallies and show the first of each."""
        truncated = pool.truncated() if found.is_dropped else None
        for source, tally in enumerate(self.tallies):
            start, end = np.searchsorted(pool.sources, [source, source + 1])
            here = slice(*np.searchsorted(found.places, [start, end]))
            places = found.places[here]
            if not len(places):
                continue
            rows, times = pool.rows[places], self.times[source][places - start]
            tally.find(found.reason, rows, times, None if truncated is None else truncated[places])
            for place, like, similarity in zip(
                places[:MAX_OFFENDERS].tolist(),
                found.like[here][:MAX_OFFENDERS].tolist(),
                found.similarity[here].tolist(),
                strict=False,
            ):
                tally.findings.append(
                    Finding(
                        reason=found.reason,
                        row=int(pool.rows[place]),
                        like=self.sources[int(pool.sources[like])].label,
                        like_row=int(pool.rows[like]),
                        similarity=round(similarity, 3),
                        text=self._text(source, int(pool.rows[place])),
                        is_dropped=found.is_dropped,
                    )
                )

    def compare_lengths(self, pool: PoolReader) -> None:
        """Count in the tallies how often the longer answer of a kept row is the chosen one."""
        for source, tally in enumerate(self.tallies):
            start, end = np.searchsorted(pool.sources, [source, source + 1])
            kept = pool.is_kept[start:end]
            tally.compare_lengths(pool.lengths_N2[start:end][kept], self.times[source][kept])

    def _text(self, source: int, row: int) -> str:
        pair = self.maker.pair(source, self.maker.stores[source][row])[1]
        text = " ".join(readable_prompt(pair).split())
        return text if len(text) <= TEXT_CHARACTERS else text[: TEXT_CHARACTERS - 3] + "..."
