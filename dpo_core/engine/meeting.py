"""Waiting for ranks that read, write or compute alone, apart from the exchanges of numbers.

An exchange on cards that is not over in minutes never will be: ranks have gone different ways, or a link is down, and the
cards spin meanwhile. But rank 0 alone may read a model or remove an old checkpoint for longer than that. So ranks meet in
the process group's store first, over a connection of its own, and exchange once all are there. Here a request to stop is
heard, too, which inside an exchange it is not. Over gloo they meet by an exchange: it waits as long, and sees at once that
a rank is gone.
"""

import time
from datetime import timedelta
from functools import lru_cache
from itertools import count
from typing import Any, cast

import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed import distributed_c10d

from dpo_core.contract.errors import StepCrashed

# For a rank that works alone. One that is gone or stuck is noticed by ``heartbeat``.
WAIT = timedelta(hours=1)
IN_STORE = {"cuda"}  # devices whose ranks meet there; on others they exchange over gloo
FIRST_PAUSE, LONGEST_PAUSE = 0.0005, 0.25  # seconds between looks; from look to look twice as long


class Meetings:
    """The meetings of a process group, in their order: every rank comes to each of them."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        store: Any = distributed_c10d._get_default_store()
        self._store = cast(dist.Store, store.clone())  # which torch's stubs leave out
        self._size, self._numbers = group.size(), count()

    def meet(self, longest: timedelta) -> None:
        """Return once all ranks have called it. Raises ``StepCrashed`` if one has not after ``longest``."""
        place = f"pairline/meeting/{next(self._numbers)}"
        if self._store.add(f"{place}/ranks", 1) == self._size:
            self._store.set(place, "")
            return
        until, pause = time.monotonic() + longest.total_seconds(), FIRST_PAUSE
        while not self._store.check([place]):
            if time.monotonic() >= until:
                here = self._store.add(f"{place}/ranks", 0)
                raise StepCrashed(
                    f"{self._size - here} of {self._size} processes did not come to where all meet within {longest}.",
                    "The log shows what they were at: reading or writing on a disk, as a rule.",
                )
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def meet(accelerator: Accelerator) -> None:
    """Return once all ranks have called it, however long one of them has worked alone before."""
    if accelerator.num_processes == 1:
        return
    if accelerator.device.type in IN_STORE:
        _of_group(distributed_c10d._get_default_group()).meet(WAIT)
    else:
        dist.barrier()


@lru_cache(maxsize=1)
def _of_group(group: dist.ProcessGroup) -> Meetings:
    return Meetings(group)
