"""Gradients in a few pieces of memory, which ranks sum while the backward goes on.

Summed one by one they would be an exchange for every parameter, most of them of kilobytes, and none of it before the
backward has ended. In the manner of DDP (Li et al. 2020, arXiv 2006.15704) neighbours share a bucket, filled from the last
parameter on, as a backward fills them. Buckets are sent in one order on every rank, whichever of them is complete first.
"""

import contextlib
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 64 << 20
ALIGNED = 64  # values: a gradient begins where a kernel can read many at once


class GradientBuckets:
    """The gradients of some parameters of one dtype and device, zero at first. They stay where they are: nothing may take
    their place, and nothing but a backward add to them."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.buckets: list[Tensor] = []
        self._members: list[set[nn.Parameter]] = []  # of each bucket
        # Whose gradient a step's last backward has not reached yet; none at other times.
        self._missing: list[set[nn.Parameter]] = []
        self._under_way: list[dist.Work] = []
        self._bucket_of: dict[nn.Parameter, int] = {}
        for some in _neighbours(list(parameters)[::-1]):
            first = some[0]
            bucket = first.new_zeros(sum(map(_room, some)))
            for parameter, part in zip(some, bucket.split([_room(one) for one in some]), strict=True):
                parameter.grad = part[: parameter.numel()].view(parameter.shape)
                self._bucket_of[parameter] = len(self.buckets)
            self.buckets.append(bucket)
            self._members.append(set(some))

    @property
    def num_sent(self) -> int:
        """Buckets whose sum was begun and not waited for."""
        return len(self._under_way)

    def added(self, parameter: nn.Parameter) -> None:
        """Note that a backward is done with a parameter's gradient: what is complete is sent, in a step's last backward."""
        if self._missing:
            self._missing[self._bucket_of[parameter]].remove(parameter)
            self._send(complete_alone=True)

    @contextlib.contextmanager
    def exchanging(self) -> Iterator[None]:
        """Hold around the last backward of a step: sums over ranks are begun in it. All ranks enter it together, and
        exchange nothing else meanwhile."""
        self._missing = [set(members) for members in self._members]
        try:
            yield
            self._send(complete_alone=False)  # what nothing used, an expert, has no gradient to wait for
        finally:
            self._missing = []

    def _send(self, complete_alone: bool) -> None:
        waiting = range(len(self._under_way), len(self.buckets))
        for number in waiting:
            if complete_alone and self._missing[number]:
                return
            self._under_way.append(dist.all_reduce(self.buckets[number], async_op=True))

    def wait(self) -> None:
        """Return once every sum that was begun is there."""
        for work in self._under_way:
            work.wait()
        self._under_way = []

    def forget(self) -> None:
        """Make them zero."""
        self.wait()
        torch._foreach_zero_(self.buckets)


def _neighbours(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters that fill a bucket together; one alone may be larger."""
    some: list[nn.Parameter] = []
    for parameter in parameters:
        if some and sum(map(_room, [*some, parameter])) * parameter.element_size() > BUCKET_BYTES:
            yield some
            some = []
        some.append(parameter)
    if some:
        yield some


def _room(parameter: nn.Parameter) -> int:
    """Values that its gradient takes in a bucket."""
    return -(-parameter.numel() // ALIGNED) * ALIGNED
