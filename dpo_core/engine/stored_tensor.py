"""A tensor of a checkpoint as this rank has it: all of it, or one range of its flattened values.

Every back end shares a tensor out in ranges: ZeRO cuts flattened values, FSDP2 rows, tensor parallelism some columns of
rows. So a rank writes its ranges into a file of its own, and any other number of ranks, and any other back end, finds its
own ranges in those files.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dpo_core.contract.checkpoint_files import files_of
from dpo_core.model.tensor_slices import PARTS, Columns, open_slices


class Part(NamedTuple):
    """Where a piece belongs."""

    start: int  # its first value in the flattened tensor
    shape: tuple[int, ...]  # of the whole tensor
    columns: Columns | None = None  # of rows; None: it is one range


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """``held`` is the back end's own memory: what is read from a file goes into it, and what is written comes from it."""

    shape: tuple[int, ...]  # of the whole tensor
    dtype: torch.dtype
    held: Tensor  # this rank's values, of any shape, empty where it has none
    gather: Callable[[], Tensor]  # called by every rank at once; -> the whole tensor
    start: int = 0  # of the flattened whole tensor: the first value held
    copy: int = 0  # which of ``copies`` ranks that hold the same values this one is
    copies: int = 1
    columns: Columns | None = None  # first and behind the last of each row that is held; None: whole rows

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def written_here(self) -> tuple[Part, Tensor]:
        """Return what this rank writes: ranks that hold the same values write a part each. -> its place, its values"""
        flat, of_row, width = self.held.detach().contiguous().view(-1), 1, 1
        if self.columns:  # whole rows to each of the ranks
            of_row, width = self.columns[1] - self.columns[0], torch.Size(self.shape[1:]).numel()
        units = flat.numel() // of_row
        first, last = (units * number // self.copies for number in (self.copy, self.copy + 1))
        place = Part(self.start + first * width, self.shape, self.columns)
        return place, flat[first * of_row : last * of_row]

    def take(self, values: Tensor) -> None:
        """Copy this rank's part of the whole tensor's values into ``held``."""
        if self.columns:
            first = self.start // torch.Size(self.shape[1:]).numel()
            values = values[first : first + len(self.held), slice(*self.columns)]
        else:
            values = values.reshape(-1)[self.start :][: self.held.numel()]
        self.held.copy_(values.view(self.held.shape))


def whole(tensor: Tensor, copy: int = 0, copies: int = 1) -> StoredTensor:
    """Return a tensor that this rank holds whole, as ``copies`` ranks do."""
    return StoredTensor(
        tuple(tensor.shape), tensor.dtype, tensor.detach(), tensor.detach, copy=copy, copies=copies
    )


def parts_metadata(parts: Mapping[str, Part]) -> dict[str, str]:
    """Return the metadata of a file of pieces."""
    named = {
        name: [part.start, list(part.shape), *([list(part.columns)] if part.columns else [])]
        for name, part in parts.items()
    }
    return {PARTS: json.dumps(named)}


def fill_from(folder: Path, file: str, tensors: Mapping[str, StoredTensor]) -> None:
    """Read this rank's values of every tensor from ``file`` of a folder, or from the parts that ranks have written of it.
    Raises ``StoreError`` if the names differ."""
    with open_slices(files_of(folder, file), tensors) as slices:
        for name, tensor in tensors.items():
            slices.fill(name, tensor.held, tensor.start, tensor.columns)
