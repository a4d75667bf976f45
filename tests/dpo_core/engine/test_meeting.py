"""Ranks that wait for one that works alone longer than any exchange may take."""

import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from dpo_core.contract.errors import CheckpointError, StepCrashed
from dpo_core.contract.store import hash_files, write_bytes, write_json
from dpo_core.engine import meeting
from dpo_core.engine.agreed_unread import agreed_unread
from dpo_core.engine.checkpoint import RunState, checkpoint_folder, newest_checkpoint
from dpo_core.engine.distributed import by_every_rank, from_main
from dpo_core.model.load import load_model
from tests.tiny_models import make_model
from tests.tiny_stage import checkpoint_ref
from tests.together import together

EXCHANGE_SECONDS = 4.0


def this_rank(rank: int) -> SimpleNamespace:
    """What of accelerate's accelerator tells ranks apart."""
    return SimpleNamespace(
        process_index=rank, num_processes=2, is_main_process=rank == 0, device=torch.device("cpu")
    )


def slow(of: float) -> float:
    time.sleep(of)
    return of


def test_what_a_rank_does_alone_may_take_longer_than_an_exchange(tmp_path, monkeypatch):
    """As NCCL has it: exchanges fail after minutes, and rank 0 may look at a disk for longer, or any other."""
    monkeypatch.setattr(meeting, "IN_STORE", {"cpu"})

    def meets(rank: int) -> None:
        dist.destroy_process_group()
        dist.init_process_group(
            "gloo",
            f"file://{tmp_path / 'short'}",
            rank=rank,
            world_size=2,
            timeout=timedelta(seconds=EXCHANGE_SECONDS),
        )
        accelerator, longer = this_rank(rank), EXCHANGE_SECONDS + 1
        assert from_main(accelerator, lambda: slow(longer)) == longer
        of_each = by_every_rank(accelerator, lambda number, _: number and slow(longer))
        assert of_each == [0, longer]
        for _ in range(100):  # soon over, and no two are taken for one
            meeting.meet(accelerator)

    together(meets, tmp_path)


def test_a_rank_that_never_comes_is_said_to_be_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(meeting, "IN_STORE", {"cpu"})
    monkeypatch.setattr(meeting, "WAIT", timedelta(seconds=0.5))

    def meets(rank: int) -> None:
        if rank == 0:
            with pytest.raises(StepCrashed, match="1 of 2 processes did not come to where all meet within"):
                meeting.meet(this_rank(rank))

    together(meets, tmp_path)


def test_ranks_that_see_other_files_end_together_and_say_which_they_are(tmp_path):
    """A node that a network file system shows the checkpoint's files late, or another folder of this name."""
    checkpoint = checkpoint_ref(make_model(tmp_path / "model"))

    seen, also, unseen = (
        load_model(checkpoint, read_weights=False, in_parts=in_parts) for in_parts in (True, True, False)
    )

    def load(rank: int) -> None:
        assert agreed_unread(this_rank(rank), seen)
        with pytest.raises(
            CheckpointError, match=r"^rank 1 on \S+ did not find .* safetensors files of .*model"
        ):
            agreed_unread(this_rank(rank), unseen if rank else also)

    together(load, tmp_path)


def test_a_checkpoint_that_one_rank_cannot_read_is_not_passed_over(tmp_path):
    """The run would go on from an older one, and this one be deleted. What rank 0 cannot read either is damaged."""
    folder = checkpoint_folder(tmp_path / "checkpoints", 7)
    state = RunState(step=7, job_fingerprint="x")
    for name in ("model.safetensors", "optimizer.safetensors"):
        write_bytes(folder / name, name.encode())
    write_json(folder / "state.json", state)
    write_json(folder / "manifest.json", hash_files(folder))
    is_file = Path.is_file

    def look(rank: int) -> None:
        assert newest_checkpoint(folder.parent, "x", this_rank(rank)) == (folder, state)
        late = folder / sorted(hash_files(folder))[2]  # manifest, model, optimizer, state: rank 1's
        if rank == 1:
            Path.is_file = lambda path: path != late and is_file(path)
        with pytest.raises(
            StepCrashed, match=r"is whole, and not everybody could read it\. rank 1 on .* is missing"
        ):
            newest_checkpoint(folder.parent, "x", this_rank(rank))
        if rank == 0:
            late.unlink()
        meeting.meet(this_rank(rank))
        assert newest_checkpoint(folder.parent, "x", this_rank(rank)) is None

    together(look, tmp_path)
