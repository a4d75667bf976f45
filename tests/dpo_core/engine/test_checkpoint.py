"""Which checkpoints stay."""

import logging
from pathlib import Path

import pytest

from dpo_core.engine import checkpoint
from dpo_core.engine.checkpoint import checkpoint_folder, keep_newest


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
