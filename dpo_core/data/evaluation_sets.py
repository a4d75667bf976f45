"""Evaluation sets that training prompts are compared with: read, indexed, and counted by how many instances were met."""

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpo_core.contract.data_jobs import EvaluationOverlap
from dpo_core.contract.drops import RowDropped
from dpo_core.contract.errors import DataError
from dpo_core.contract.quality_config import QualityRules
from dpo_core.contract.refs import ResolvedEvaluationSet
from dpo_core.data.contamination import EvaluationIndex
from dpo_core.data.half_characters import whole
from dpo_core.data.messages import message_list
from dpo_core.data.sources import RowStore, load_source


class EvaluationSets:
    """Several sets; their instances are numbered through."""

    def __init__(self, sets: Sequence[ResolvedEvaluationSet], rules: QualityRules, cache_dir: Path) -> None:
        """Raises ``DataError`` for a set that cannot be read or lacks a named column, ``RemoteError``."""
        self._sets, self._stores = sets, [load_source(one, cache_dir) for one in sets]
        for one, store in zip(sets, self._stores, strict=True):
            _check_fields(one, store)
        self._firsts = [sum(map(len, self._stores[:i])) for i in range(len(sets))]
        texts = (
            _texts(store[row], one.fields)
            for one, store in zip(sets, self._stores, strict=True)
            for row in range(len(store))
        )
        self.index = EvaluationIndex(texts, rules.contamination_ngram_words, rules.contamination_share)
        self._met: list[set[int]] = [set() for _ in sets]
        self._rows = [0] * len(sets)

    def _place(self, instance: int) -> tuple[int, int]:
        number = bisect_right(self._firsts, instance) - 1
        return number, instance - self._firsts[number]

    def count(self, instances: list[int]) -> None:
        """Count the instances that one row overlaps with."""
        places = [self._place(instance) for instance in instances]
        for number, row in places:
            self._met[number].add(row)
        for number in {number for number, _ in places}:
            self._rows[number] += 1

    def instance(self, instance: int) -> tuple[str, int, str]:
        """Return the set, the row number and the text of an instance."""
        number, row = self._place(instance)
        one = self._sets[number]
        return one.label, row, "\n".join(_texts(self._stores[number][row], one.fields))

    def overlaps(self) -> tuple[EvaluationOverlap, ...]:
        """Say what was counted of each set."""
        short = [self._place(instance)[0] for instance in self.index.too_short]
        return tuple(
            EvaluationOverlap(
                label=one.label,
                instances=len(store),
                too_short=short.count(number),
                overlapping=len(self._met[number]),
                rows=self._rows[number],
            )
            for number, (one, store) in enumerate(zip(self._sets, self._stores, strict=True))
        )


def _check_fields(one: ResolvedEvaluationSet, store: RowStore) -> None:
    if missing := [name for name in one.fields if name not in store.columns]:
        raise DataError(
            f"The evaluation set {one.label} has no column {', '.join(missing)}, which quality.evaluation_sets names in "
            f"`fields`. Its columns are {', '.join(store.columns) or 'none'}."
        )


def _texts(row: Any, fields: Sequence[str]) -> list[str]:
    """The fields' texts; of messages what the user says. Empty where one is missing, as Tulu 3 leaves such instances out."""
    values = [row.get(name) if isinstance(row, dict) else None for name in fields]
    return [] if any(value is None for value in values) else [_text(value) for value in values]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return whole(value)
    try:
        turns = message_list(value, "user") if isinstance(value, list | dict) else None
    except RowDropped:  # it has the shape of messages and is something else: choices, pictures
        turns = None
    text = "\n".join(turn["content"] for turn in turns if turn["role"] == "user") if turns else str(value)
    return whole(text)
