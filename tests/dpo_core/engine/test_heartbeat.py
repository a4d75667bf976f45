"""Ranks that exchange nothing and have nothing closed under them, as NCCL has it: one leaves by an error of its own.

How long it takes until all have noticed is taken from the constants of real runs, by a virtual clock.
"""

import heapq
import itertools
import math
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from dpo_core.engine import heartbeat
from dpo_core.engine.heartbeat import Heartbeat
from tests.together import together
from tests.waiting import PATIENCE_SECONDS

LEAVES, RANKS = 2, 3


def test_all_hear_of_a_rank_that_has_left_and_lives_on(tmp_path, monkeypatch):
    """The one that watches it, and the others by what that one says."""
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(heartbeat, "SILENCE_SECONDS", 10.0)

    def watch(rank: int) -> None:
        heard, words = threading.Event(), list[str]()

        def on_loss(lost: str) -> None:
            words.append(lost)
            heard.set()

        beats = Heartbeat(on_loss)
        beats.start()
        if rank == LEAVES:
            assert not heard.wait(0.5)
            beats.stop()  # as `watched_ranks` does when an exception passes it
        else:
            assert heard.wait(PATIENCE_SECONDS)
            assert words[0].startswith(f"Process {LEAVES} of this step has not been heard of for 10 s")
        dist.barrier()

    together(watch, tmp_path, RANKS)


class SharedClock:
    """Virtual seconds, which pass once all who share it wait; one of them runs at a time."""

    def __init__(self, num_threads: int) -> None:
        self.now, self._running = 0.0, num_threads
        self._wakes: list[tuple[float, int]] = []
        self._numbers, self._awake, self._turn = itertools.count(), (0.0, -1), threading.Condition()

    def wait(self, seconds: float) -> None:
        """Return after so many seconds."""
        with self._turn:
            mine = (self.now + seconds, next(self._numbers))
            heapq.heappush(self._wakes, mine)
            self._go_on()
            assert self._turn.wait_for(lambda: self._awake == mine, PATIENCE_SECONDS)

    def leave(self) -> None:
        """Wait no more."""
        with self._turn:
            self._go_on()

    def _go_on(self) -> None:
        self._running -= 1
        if self._wakes and not self._running:
            self._awake, self._running = heapq.heappop(self._wakes), 1
            self.now = self._awake[0]
            self._turn.notify_all()


class EndedAt:
    """A rank's ``_ended`` by the virtual clock."""

    def __init__(self, clock: SharedClock, at: float) -> None:
        self.clock, self.at = clock, at

    def wait(self, seconds: float) -> bool:
        self.clock.wait(seconds)
        return self.clock.now >= self.at


class GoneStore:
    """The store of a machine that is gone at some time: a call is refused at once, or is heard of only by its time-out."""

    def __init__(self, clock: SharedClock, at: float, hangs: float) -> None:
        self.store, self.clock, self.at, self.hangs = dist.HashStore(), clock, at, hangs

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if self.clock.now >= self.at:
            self.clock.wait(self.hangs)
            raise RuntimeError("Connection was likely closed")
        return getattr(self.store, name)


def seconds_to_hear(
    monkeypatch: pytest.MonkeyPatch, phase: float, dies: float, store_hangs: float | None = None
) -> list[float]:
    """Run the loops of ``RANKS`` with the constants of real runs, each ``phase`` after the one before; the last rank dies at
    ``dies``, or the store does. -> when each of the others ends, counted from there"""
    clock, heard = SharedClock(RANKS), list[float]()
    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(monotonic=lambda: clock.now))
    store: Any = dist.HashStore() if store_hangs is None else GoneStore(clock, dies, store_hangs)

    def live(rank: int) -> None:
        beats = Heartbeat(lambda lost: heard.append(clock.now - dies))
        is_lost = store_hangs is None and rank == LEAVES
        beats._ended = EndedAt(clock, dies if is_lost else math.inf)
        beats._store, beats._rank, beats._watched = store, rank, (rank + 1) % RANKS
        clock.wait(rank * phase)
        beats.run()
        clock.leave()

    threads = [threading.Thread(target=live, args=(rank,)) for rank in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    return heard


@pytest.mark.parametrize("phase", [0.0, 0.01, 1.0, 2.99])
@pytest.mark.parametrize("dies", [30.0, 32.5, 35.99])
def test_a_lost_rank_has_ended_all_others_within_a_minute(monkeypatch, phase, dies):
    seconds = seconds_to_hear(monkeypatch, phase, dies)
    assert len(seconds) == RANKS - 1
    assert heartbeat.SILENCE_SECONDS < max(seconds) < 60


@pytest.mark.parametrize("hangs", [0.0, 1.0, heartbeat.BEAT_SECONDS - 0.01, heartbeat.SILENCE_SECONDS])
def test_a_lost_store_has_ended_all_within_a_minute(monkeypatch, hangs):
    seconds = seconds_to_hear(monkeypatch, 0.5, 31.0, hangs)
    assert len(seconds) == RANKS
    assert max(seconds) < 60
