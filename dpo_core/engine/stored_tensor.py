"""A tensor of a checkpoint as this rank has it: all of it, or one range of its flattened values.

Every back end shares a tensor out in ranges: ZeRO cuts flattened values, FSDP2 rows. So a rank writes its ranges into a
file of its own, and any other number of ranks, and any other back end, finds its own ranges in those files.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dpo_core.contract.checkpoint_files import files_of
from dpo_core.model.tensor_slices import PARTS, open_slices


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

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def written_here(self) -> tuple[int, Tensor]:
        """Return what this rank writes: ranks that hold the same values write a part each. -> first value, flat values"""
        flat = self.held.detach().contiguous().view(-1)
        first, last = (flat.numel() * number // self.copies for number in (self.copy, self.copy + 1))
        return self.start + first, flat[first:last]


def whole(tensor: Tensor, copy: int = 0, copies: int = 1) -> StoredTensor:
    """Return a tensor that this rank holds whole, as ``copies`` ranks do."""
    return StoredTensor(
        tuple(tensor.shape), tensor.dtype, tensor.detach(), tensor.detach, copy=copy, copies=copies
    )


def parts_metadata(parts: Mapping[str, tuple[int, tuple[int, ...]]]) -> dict[str, str]:
    """Return the metadata of a file of pieces. ``parts``: name -> first value, whole shape."""
    return {PARTS: json.dumps({name: [start, list(shape)] for name, (start, shape) in parts.items()})}


def fill_from(folder: Path, file: str, tensors: Mapping[str, StoredTensor]) -> None:
    """Read this rank's values of every tensor from ``file`` of a folder, or from the parts that ranks have written of it.
    Raises ``StoreError`` if the names differ."""
    with open_slices(files_of(folder, file), tensors) as slices:
        for name, tensor in tensors.items():
            slices.fill(name, tensor.held, tensor.start)
