"""A claim is one even where machines do not hear of each other's locks: its holder's signs of life count."""

import json
import os
import time
from pathlib import Path

import pytest

from dpo_core.contract.errors import StoreBusy
from tasks.launch import holder
from tasks.launch.holder import HOLDER_FILE
from tasks.launch.own_folder import claim, make_own_folder
from tests.waiting import wait_until


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "store/train/abc"
    folder.mkdir(parents=True)
    return folder


def holds(folder: Path, machine: str, age: float = 0.0, text: str = "") -> Path:
    """Write what a holder on this machine leaves that has been silent for so long."""
    file = make_own_folder(folder) / HOLDER_FILE
    file.write_text(text or json.dumps({"machine": machine, "host": "login2", "pid": 7}))
    os.utime(file, (time.time() - age,) * 2)
    return file


@pytest.mark.parametrize("age", [0.0, 50.0, -200.0], ids=["now", "late", "by a clock that is ahead"])
def test_what_another_machine_holds_is_busy_though_its_lock_is_not_seen(folder: Path, age: float):
    file = holds(folder, "another", age)
    with (
        pytest.raises(StoreBusy, match=f"^{folder} is in use by process 7 on login2, whose lock is not seen"),
        claim(folder, is_of_several=True),
    ):
        raise AssertionError
    with claim(folder, shared=True):
        pass
    assert json.loads(file.read_text())["machine"] == "another"


def test_a_file_that_says_nothing_is_somebodys_until_it_is_old(folder: Path):
    holds(folder, "", text="{")
    with pytest.raises(StoreBusy, match="in use by another machine"), claim(folder, is_of_several=True):
        raise AssertionError
    holds(folder, "", age=100.0, text="{")
    with claim(folder, is_of_several=True):
        pass


@pytest.mark.parametrize(("machine", "age"), [("another", 100.0), ("this", 0.0), ("another", -1e6)])
def test_what_a_killed_holder_left_is_nobodys(folder: Path, machine: str, age: float):
    """Of this machine at once, as the kernel has dropped its lock; of another once it has been silent."""
    file = holds(folder, holder.this_machine() if machine == "this" else machine, age)
    with claim(folder, is_of_several=True):
        assert json.loads(file.read_text())["pid"] == os.getpid()
    assert not file.exists()


def test_a_holder_gives_signs_of_life_and_leaves_what_is_not_its_own(folder: Path, monkeypatch):
    monkeypatch.setattr(holder, "SECONDS_BETWEEN_SIGNS", 0.01)
    with claim(folder, is_of_several=True):
        file = holds(
            folder, "another", age=40.0
        )  # taken over meanwhile: it was silent, as a machine that slept
        wait_until(lambda: time.time() - file.stat().st_mtime < 30.0)
    assert file.exists()


def test_of_two_that_find_nobody_one_is_the_holder(folder: Path, monkeypatch):
    """Both have looked before either wrote."""
    file = holds(folder, "another")
    monkeypatch.setattr(holder, "_read", lambda file: (_ for _ in ()).throw(FileNotFoundError))
    with pytest.raises(StoreBusy), claim(folder, is_of_several=True):
        raise AssertionError
    assert file.exists()
