"""The tokenised mixture as later steps read it: random access, memory-mapped, torch-free. Shapes: T tokens, N rows."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc

from dpo_core.data.pair_file import PROMPTS_FILE, ROWS_FILE, SOURCES_FILE, ArrowRows
from dpo_core.data.pairs import TokenizedPair

Split = Literal["train", "held_out"]


@dataclass(frozen=True, slots=True)
class HeldOutPrompt:
    """A prompt to answer: ids with the assistant's turn opened, the user's last message, and what can be verified."""

    prompt_ids: np.ndarray  # int32 [T]
    text: str
    constraints: tuple[dict, ...]


@dataclass(frozen=True)
class PairDataset:
    """One split of a mixture, in the mixture's order. ``dataset[i]`` is a ``TokenizedPair`` of views on the file."""

    folder: Path
    split: Split

    @classmethod
    def open(cls, path: Path, split: Split) -> "PairDataset":
        """Open a split of the mixture at ``path`` (``DatasetRef.path``). Raises ``StoreError`` if it cannot be read."""
        dataset = cls(Path(path) / split, split)
        dataset._rows  # noqa: B018  a damaged file is met here, not at the first batch
        return dataset

    @cached_property
    def _rows(self) -> ArrowRows:
        return ArrowRows(self.folder / ROWS_FILE)

    @cached_property
    def _prompts(self) -> ArrowRows:
        return ArrowRows(self.folder / PROMPTS_FILE)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> TokenizedPair:
        rows, index = self._rows, int(index)
        return TokenizedPair(
            row_key=rows.scalar("row_key", index),
            chosen_ids=rows.ragged("chosen_ids", index),
            chosen_trained=rows.ragged("chosen_trained", index).view(bool),
            rejected_ids=rows.ragged("rejected_ids", index),
            rejected_trained=rows.ragged("rejected_trained", index).view(bool),
        )

    @cached_property
    def row_keys(self) -> np.ndarray:
        """Content keys, bytes S32 [N]; equal rows have equal keys."""
        return self._rows.keys("row_key")

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of the chosen and the rejected sequence, int32 [N, 2]."""
        return np.stack([self._rows.column("chosen_length"), self._rows.column("rejected_length")], axis=1)

    @cached_property
    def prefix_lengths(self) -> np.ndarray:
        """Tokens of the longest common prefix of the two sequences, int32 [N]."""
        return self._rows.column("prefix_length")

    def largest_id(self) -> int:
        """Return the largest token id of all rows, -1 of none."""
        sides = (
            batch.column(name) for batch in self._rows.batches() for name in ("chosen_ids", "rejected_ids")
        )
        return max((pc.max(side.values).as_py() for side in sides if len(side.values)), default=-1)

    @cached_property
    def weights(self) -> np.ndarray:
        """A pair's share of the gradient against that of others, float32 [N]; 1 where its source names no such column."""
        rows = self._rows
        return rows.column("weight") if rows.has("weight") else np.ones(len(self), np.float32)

    @cached_property
    def margins(self) -> np.ndarray:
        """The margin that a pair is to reach, float32 [N]; NaN where its source names no such column."""
        rows = self._rows
        return rows.column("margin") if rows.has("margin") else np.full(len(self), np.nan, np.float32)

    @cached_property
    def sources(self) -> np.ndarray:
        """The number of each pair's source, int32 [N]."""
        rows = self._rows
        return rows.column("source") if rows.has("source") else np.zeros(len(self), np.int32)

    @cached_property
    def source_names(self) -> tuple[str, ...]:
        """What the sources are called, by number; none in mixtures that do not say so."""
        file = self.folder.parent / SOURCES_FILE
        return tuple(json.loads(file.read_text())) if file.is_file() and self._rows.has("source") else ()

    @cached_property
    def prompt_numbers(self) -> np.ndarray:
        """The number of each held-out pair's prompt, int64 [N]: equal prompts have equal ones."""
        known: dict[bytes, int] = {}
        rows = (self._prompts.ragged("prompt_ids", row).tobytes() for row in range(len(self)))
        return np.array([known.setdefault(ids, len(known)) for ids in rows], np.int64)

    def prompt(self, index: int) -> HeldOutPrompt:
        """Return the prompt of held-out row ``index``. The first rows are all of different prompts."""
        if self.split != "held_out":
            raise ValueError(
                'Prompts are kept for the held-out split only; open the mixture with split="held_out".'
            )
        prompts, index = self._prompts, int(index)
        constraints = json.loads(prompts.scalar("constraints", index))
        text = prompts.scalar("prompt_text", index)
        return HeldOutPrompt(prompts.ragged("prompt_ids", index), text, tuple(constraints))

    def prompt_column(self, name: Literal["prompt_ids", "constraints"]) -> Iterator[Any]:
        """Yield what the held-out rows' prompts have in one column, row by row; quicker than one prompt after the other."""
        for batch in self._prompts.batches():
            yield from batch.column(name).to_pylist()
