"""Which checkpoints stay, and which one a run goes on from."""

import errno
import logging
import os
import threading
from pathlib import Path

import pytest

from dpo_core.contract import store
from dpo_core.contract.store import hash_files, sha256_file, write_json
from dpo_core.engine import checkpoint
from dpo_core.engine.checkpoint import RunState, checkpoint_folder, keep_newest, newest_checkpoint


def steps(root: Path) -> list[int]:
    return sorted(int(folder.name.removeprefix("step-")) for folder in root.glob("step-*"))


def write(root: Path, *numbers: int) -> None:
    for number in numbers:
        checkpoint_folder(root, number).mkdir(parents=True)


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [(1, 0, [30]), (2, 0, [20, 30]), (1, 10, [10, 30]), (9, 0, [10, 20, 30]), (1, 30, [30])],
)
def test_the_newest_and_the_best_stay_and_no_later_one(tmp_path, keep, best, left):
    write(tmp_path, 10, 20, 30, 40)
    keep_newest(tmp_path, checkpoint_folder(tmp_path, 30), keep, best)
    assert steps(tmp_path) == left


def test_one_that_cannot_be_deleted_ends_no_run_and_goes_the_next_time(tmp_path, monkeypatch, caplog):
    """As a file that another node holds open on NFS."""
    write(tmp_path, 10, 20, 30)
    remove, busy = checkpoint.shutil.rmtree, [OSError("Directory not empty")]

    def rmtree(folder: Path) -> None:
        if busy:
            raise busy.pop()
        remove(folder)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", rmtree)
    with caplog.at_level(logging.WARNING):
        keep_newest(tmp_path, checkpoint_folder(tmp_path, 30), 1)
    assert steps(tmp_path) == [10, 30]
    assert "step-00000010 could not be deleted: Directory not empty" in caplog.text
    write(tmp_path, 40)
    keep_newest(tmp_path, checkpoint_folder(tmp_path, 40), 1)
    assert steps(tmp_path) == [40]


def whole(root: Path, step: int) -> Path:
    folder = checkpoint_folder(root, step)
    write(root, step)
    for name in ("model.safetensors", "optimizer.safetensors"):
        (folder / name).write_bytes(name.encode())
    write_json(folder / "state.json", RunState(step=step, job_fingerprint="job"))
    write_json(folder / "manifest.json", hash_files(folder))
    return folder


def test_files_of_a_checkpoint_are_verified_several_at_once(tmp_path, monkeypatch):
    """Each of weights and moments waits until the other is being read, too."""
    folder, both = whole(tmp_path, 1), threading.Barrier(2)

    def met(path: Path) -> str:
        if path.suffix == ".safetensors":
            both.wait(5)
        return sha256_file(path)

    monkeypatch.setattr(store, "sha256_file", met)
    assert newest_checkpoint(tmp_path, "job") == (folder, RunState(step=1, job_fingerprint="job"))


def test_a_file_that_cannot_be_read_is_damage_with_its_name(tmp_path, monkeypatch, caplog):
    """As a disk answers that has lost a sector: its error names no file."""
    good, bad = whole(tmp_path, 1), whole(tmp_path, 2)

    def lost(path: Path) -> str:
        if path == bad / "model.safetensors":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return sha256_file(path)

    monkeypatch.setattr(store, "sha256_file", lost)
    with caplog.at_level(logging.WARNING):
        found = newest_checkpoint(tmp_path, "job")
    assert found is not None
    assert found[0] == good
    assert "checkpoint step-00000002 is damaged and not used: model.safetensors: [Errno 5]" in caplog.text
