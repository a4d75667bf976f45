"""Ranks that exchange nothing and have nothing closed under them, as NCCL has it: one leaves by an error of its own."""

import threading

import torch.distributed as dist

from dpo_core.engine import heartbeat
from dpo_core.engine.heartbeat import BEAT_SECONDS, SILENCE_SECONDS, Heartbeat
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


def test_it_is_noticed_within_a_minute():
    assert SILENCE_SECONDS + BEAT_SECONDS < 60
