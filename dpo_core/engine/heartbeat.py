"""Ranks that look after each other: where one is lost, the others end within a minute instead of waiting for it.

gloo notices a process that is gone by its closed connections. NCCL does not, its watchdog waits for the time-out of the
exchange, and neither notices a machine that is gone or a process that is stuck. So every rank counts up a number of its own
in the group's store, over a connection of its own, and watches the number of the next rank; the first that sees one stand
still says so to all.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any, cast

import torch.distributed as dist
from torch.distributed import distributed_c10d

from dpo_core.contract.errors import StepCrashed
from dpo_core.contract.job import Job
from dpo_core.contract.results import report_error

BEAT_SECONDS = 3.0
SILENCE_SECONDS = 45.0
FAREWELL_BEATS = 2  # from when a rank knows of a loss to its end: the others read of it meanwhile
# A beat until the last one of the lost rank was seen, the silence, a beat until all have read of it, and the farewell: 57 s
# at most with a store that answers.
LOST = "pairline/lost"


class Heartbeat(threading.Thread):
    """Beats and watches from when the process group is there until ``stop``; calls ``on_loss`` with a sentence, from its own
    thread, once a rank is lost.

    Time is counted in this process's own polls, so a laptop that slept for an hour has lost no rank.
    """

    def __init__(self, on_loss: Callable[[str], None]) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._on_loss, self._ended = on_loss, threading.Event()
        self._store: dist.Store | None = None
        self._rank = self._watched = 0
        self._seen, self._silent_seconds = "", 0.0

    def stop(self) -> None:
        """Let it neither beat nor watch any more."""
        self._ended.set()

    def run(self) -> None:
        """Run until ``stop``, or until the program's main thread is over."""
        beats = 0
        while not self._ended.wait(BEAT_SECONDS) and threading.main_thread().is_alive():
            if self._store is None:
                self._join_group()
                continue
            beats += 1
            # It ends later than the others have read of the loss: the store may go with this process.
            if (lost := self._poll(self._store, beats)) and not self._ended.wait(
                FAREWELL_BEATS * BEAT_SECONDS
            ):
                self._on_loss(lost)
                return

    def _join_group(self) -> None:
        if dist.is_initialized():
            # A connection of its own: what the step waits for on the group's would hold the beats up.
            store: Any = distributed_c10d._get_default_store()
            self._store = cast(dist.Store, store.clone())  # which torch's stubs leave out
            self._store.set_timeout(timedelta(seconds=SILENCE_SECONDS))
            self._rank, world = dist.get_rank(), dist.get_world_size()
            self._watched = (self._rank + 1) % world

    def _poll(self, store: dist.Store, beats: int) -> str:
        """Beat once and look. -> what is lost, or nothing"""
        started = time.monotonic()
        try:
            store.set(_key(self._rank), str(beats))
            if store.check([LOST]):
                return store.get(LOST).decode()
            key = _key(self._watched)
            seen = store.get(key).decode() if store.check([key]) else ""
        except (RuntimeError, OSError):  # the store is rank 0's, or its launcher's: gone with its machine
            # A call that hangs takes as long as the time-out.
            self._silent_seconds += BEAT_SECONDS + time.monotonic() - started
            return self._over("The store of the process group, on the first machine,")
        self._silent_seconds = self._silent_seconds + BEAT_SECONDS if seen == self._seen else 0.0
        self._seen = seen
        if lost := self._over(f"Process {self._watched}"):
            with contextlib.suppress(RuntimeError, OSError):  # the others find out by themselves then
                store.set(LOST, lost)
        return lost

    def _over(self, who: str) -> str:
        if (silent := self._silent_seconds) < SILENCE_SECONDS:
            return ""
        return f"{who} of this step has not been heard of for {silent:.0f} s: its machine is gone, or it is stuck."


def _key(rank: int) -> str:
    return f"pairline/beat/{rank}"


@contextlib.contextmanager
def watched_ranks(job: Job) -> Iterator[None]:
    """End this process, with ``error.json``, as soon as another of the step is lost inside; nothing where it is alone.

    What stands inside ends with an exchange of all ranks, or soon after one: a rank that has left beats no more.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    heartbeat = Heartbeat(partial(end_process, job))
    heartbeat.start()
    try:
        yield
    finally:
        heartbeat.stop()


def end_process(job: Job, lost: str) -> None:
    """End at once: the main thread is in an exchange that nothing ends."""
    error = StepCrashed(lost, "The step is started again and goes on from what it has kept.")
    report_error(job, error)
    os._exit(error.exit_code)
