"""Rows of several answers to one prompt, each with a score or a rank -> rows with a chosen and a rejected one.

    best_worst   the best answer against the worst; of several that are equal, the first
    best_random  the best against one drawn among those that are worse (Zephyr's way, arXiv 2310.16944, without its ties)
    all          each answer against every worse one, in the row's order

Answers of the same score are never a pair. What is drawn depends on the seed and the row's number alone.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

from dpo_core.contract.drops import RowDropped
from dpo_core.contract.refs import ResolvedSource
from dpo_core.contract.source_config import PairRule
from dpo_core.data.json_text import unambiguous
from dpo_core.data.python_text import python_list

RANKED_COLUMNS = ("answers", "scores", "ranks")
MAX_ANSWERS = 64  # 2016 pairs
Sides = tuple[int, int]  # numbers of the chosen and the rejected answer


@dataclass(frozen=True, slots=True)
class RankedAnswers:
    """How a source's rows become pairs. ``columns``: ours -> theirs, those of ``RANKED_COLUMNS`` among them; theirs may be
    ``list.field``, a field of each entry."""

    rule: PairRule
    columns: dict[str, str]
    seed: int

    def rows(self, raw: dict, number: int) -> list[dict]:
        """Return row ``number`` once per pair, with that pair as chosen and rejected. Raises ``RowDropped``."""
        answers = self._list(raw, "answers")
        if "ranks" in self.columns:
            scores = [-_number(value) for value in self._list(raw, "ranks")]
        else:
            scores = [_number(value) for value in self._list(raw, "scores")]
        if len(answers) != len(scores):
            raise RowDropped("bad_answers", f"{len(answers)} answers, {len(scores)} numbers")
        if not 2 <= len(answers) <= MAX_ANSWERS:
            raise RowDropped("bad_answers", f"{len(answers)} answers, expected 2 to {MAX_ANSWERS}")
        return [
            {**raw, "chosen": answers[chosen], "rejected": answers[rejected]}
            for chosen, rejected in sides(scores, self.rule, self.seed, number)
        ]

    def _list(self, raw: dict, ours: str) -> list:
        theirs = self.columns[ours]
        values = _read(raw[theirs]) if theirs in raw else _field(raw, *theirs.partition(".")[::2])
        if not isinstance(values, list):
            raise RowDropped("bad_answers", f"`{theirs}` is no list")
        return values


def ranked_answers(source: ResolvedSource, seed: int) -> RankedAnswers | None:
    """Return how a source's rows become pairs; None for one whose rows are pairs."""
    return RankedAnswers(source.pairs, source.columns, seed) if source.pairs else None


def _field(raw: dict, name: str, inner: str) -> list | None:
    """One field of each entry, of a list of objects or of an object of lists, as some libraries keep one."""
    values = _read(raw.get(name))
    if isinstance(values, list):
        entries = map(_read, values)
        return [entry.get(inner) if isinstance(entry, dict) else None for entry in entries]
    return _read(values.get(inner)) if isinstance(values, dict) else None


def _read(value: Any) -> Any:
    """A value; what a text holds if it is a list or an object, as tables of text keep them. Raises ``RowDropped``."""
    if not isinstance(value, str):
        return value
    found = unambiguous(value)
    listed = python_list(value) if found is value else None
    return found if listed is None else listed


def _number(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RowDropped("bad_answers", f"{str(value)[:40]!r} is no number")
    return number


def sides(scores: list[float], rule: PairRule, seed: int, number: int) -> list[Sides]:
    """Return the pairs of one row, at least one. Raises ``RowDropped`` if all scores are equal."""
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    if scores[best] == scores[worst]:
        raise RowDropped("tied_answers")
    if rule == "best_worst":
        return [(best, worst)]
    if rule == "best_random":
        worse = [i for i, score in enumerate(scores) if score < scores[best]]
        return [(best, worse[_drawn(seed, number, len(worse))])]
    return [(i, j) for i, better in enumerate(scores) for j, score in enumerate(scores) if score < better]


def _drawn(seed: int, number: int, count: int) -> int:
    """A number below ``count``, even over rows to one part in 2^58."""
    digest = hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % count
