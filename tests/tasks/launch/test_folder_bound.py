"""Steps that write without end are killed before the disk is full, or at the bound of their folder; others never notice."""

import os
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from dpo_core.contract.errors import DiskFull
from tasks.launch import folder_bound
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import Context
from tasks.launch.folder_bound import FolderBound
from tasks.launch.launcher import CommandSpec
from tasks.launch.process import ProcessLauncher
from tests.left_behind import folder_in_memory

pytestmark = pytest.mark.integration  # real processes

MIB = 1 << 20
# Each deaf to SIGTERM: asked to stop, it would write on for as long as it is let.
WRITERS = {
    "one file": "out = open('large', 'wb')",
    "a file without a name": "out = open('large', 'wb'); os.unlink('large')",
    "hidden deep": """
        for _ in range(300):
            os.mkdir('a' * 20)
            os.chdir('a' * 20)
        out = open('large', 'wb')""",
    "unreadable": "os.mkdir('a'); out = open('a/large', 'wb'); os.chmod('a', 0)",
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory, where nobody else frees what one of these steps takes."""
    with tempfile.TemporaryDirectory(dir=folder_in_memory()) as made:
        yield Path(made)


def run(folder: Path, script: str, folder_gib: float | None = None) -> int:
    body = "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + textwrap.dedent(
        script
    )
    launcher = ProcessLauncher(ComputeConfig(stop_grace_seconds=300, folder_gib=folder_gib))
    return launcher.run(
        (CommandSpec((sys.executable, "-c", body), folder, 500),), Context(), print, lambda: None
    ).exit_code


def writing(how: str, num_mib: int) -> str:
    return textwrap.dedent(WRITERS[how]) + (
        f"\nfor _ in range({num_mib}):\n    out.write(bytes({MIB})); out.flush()\ntime.sleep(900)"
    )


@pytest.mark.parametrize("how", WRITERS)
def test_a_step_is_killed_before_the_disk_is_full(
    how: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, _ = folder_bound._free(folder)
    monkeypatch.setattr(folder_bound, "SPARE_BYTES", free)
    monkeypatch.setattr(folder_bound, "SPARE_SHARE", (free - 100 * MIB) / free)
    started = time.monotonic()
    with pytest.raises(DiskFull, match=r"nearly full: .* GiB and .* files are left\. Find out"):
        run(folder, writing(how, 200))
    assert time.monotonic() - started < 250  # killed, not asked


@pytest.mark.parametrize("how", [how for how in WRITERS if how != "a file without a name"])
def test_a_folder_with_a_bound_is_held_to_it(how: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_bound, "SECONDS_BETWEEN_LISTINGS", 0.2)
    with pytest.raises(DiskFull, match=rf"{folder} holds .* GiB in .* files, expected at most 0\.01 GiB"):
        run(folder, writing(how, 20), folder_gib=0.01)


def test_files_are_counted_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_bound, "MAX_FILES_LISTED", 100)
    monkeypatch.setattr(folder_bound, "SECONDS_BETWEEN_LISTINGS", 0.2)
    with pytest.raises(DiskFull, match="in 101 files, expected at most 1 GiB"):
        run(folder, "for i in range(101): os.mkdir(str(i))\ntime.sleep(900)", folder_gib=1)


@pytest.mark.parametrize(("at_first", "least"), [(1_000_000, 10_000), (50_000, 5_000), (20, 2)])
def test_the_last_files_of_a_disk_are_not_a_steps(
    folder: Path, monkeypatch: pytest.MonkeyPatch, at_first: int, least: int
) -> None:
    """10,000, or a tenth of what there was; a file system that counts none has no end."""
    left = [at_first]

    def with_files(path: Path) -> SimpleNamespace:
        now = os_statvfs(path)
        return SimpleNamespace(
            f_bavail=now.f_bavail, f_frsize=now.f_frsize, f_favail=left[0], f_files=at_first
        )

    os_statvfs = os.statvfs
    monkeypatch.setattr(folder_bound.os, "statvfs", with_files)
    bound = FolderBound(folder, None)
    for left[0] in (at_first, least):
        bound.check()
    left[0] = least - 1
    with pytest.raises(DiskFull, match=rf"GiB and {least - 1:,} files are left"):
        bound.check()


def test_a_step_within_its_bounds_ends_as_ever(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that makes and removes files all the time, so that a listing never meets what it was told."""
    monkeypatch.setattr(folder_bound, "SECONDS_BETWEEN_LISTINGS", 0.0)
    script = """
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            os.mkdir('a'); open('a/b', 'wb').write(bytes(1 << 20)); os.rename('a/b', 'c'); os.rmdir('a'); os.unlink('c')"""
    assert run(folder, script, folder_gib=0.01) == 0
    assert run(folder, "print(1)") == 0


def test_looking_costs_nothing(folder: Path) -> None:
    bound, started = FolderBound(folder, None), time.process_time()
    for _ in range(1000):
        bound.check()
    assert time.process_time() - started < 0.5
