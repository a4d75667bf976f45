"""Processes that compute each forward together, and what they exchange in forwards and backwards (tensor parallelism)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TensorRanks:
    """The processes that compute a forward together, and which of them this one is."""

    group: dist.ProcessGroup
    rank: int
    size: int

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over them, the same bits on each."""
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.group)
        return total

    def largest(self, values: Tensor) -> Tensor:
        """Return the largest of theirs, elementwise."""
        largest = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group)
        return largest

    def joined(self, values: Tensor, dimension: int, length: int) -> Tensor:
        """Return the parts of all, one behind the other, ``length`` in all."""
        shape = list(values.shape)
        shape[dimension] = self.largest_part(length)
        padded = values.new_zeros(shape)
        padded.narrow(dimension, 0, values.shape[dimension]).copy_(values)
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat(parts, dim=dimension).narrow(dimension, 0, length)

    def largest_part(self, length: int) -> int:
        """Return the most that a process has of a dimension: the last one has less where it cannot be divided."""
        return -(-length // self.size)

    def part(self, length: int) -> tuple[int, int]:
        """Return this process's part of a dimension. -> first, behind the last"""
        each = self.largest_part(length)
        return min(self.rank * each, length), min((self.rank + 1) * each, length)


class SharedInput(torch.autograd.Function):
    """What every process has and uses with a part of a matrix: each has a part of its slope."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ranks: TensorRanks) -> Tensor:
        """Return the same."""
        ctx.ranks = ranks
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        """Return the sum of the slopes."""
        return ctx.ranks.sum(slope), None


class SummedOutput(torch.autograd.Function):
    """Products of parts, of which every process goes on with the sum."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ranks: TensorRanks) -> Tensor:
        """Return the sum."""
        return ranks.sum(values)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        """Return the slope as it is: every process has all of it."""
        return slope, None


class JoinedOutput(torch.autograd.Function):
    """Parts along the last dimension, of which every process goes on with all."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ranks: TensorRanks, length: int) -> Tensor:
        """Return all, one behind the other."""
        ctx.ranks = ranks
        return ranks.joined(values, values.dim() - 1, length)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        """Return this process's part of the slope, of which it has all."""
        first, last = ctx.ranks.part(slope.shape[-1])
        return slope[..., first:last], None, None
