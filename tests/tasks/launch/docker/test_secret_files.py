"""Secrets lie in memory, only while a container starts, for its user alone; what a killed run left is swept."""

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from dpo_core.contract.errors import StoreError
from tasks.launch.context import Context
from tasks.launch.docker.secret_files import MEMORY, places_for_secrets, secret_files

TOKEN = "hf_planted"


@dataclass(frozen=True)
class Spec:
    """What is asked of a container's specification here."""

    folder: Path
    secrets: tuple[str, ...] = ("HF_TOKEN",)
    user: tuple[int, int] = (10001, 10001) if os.geteuid() == 0 else (os.getuid(), os.getgid())


@pytest.fixture
def spec(tmp_path, monkeypatch) -> Spec:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return Spec(tmp_path / "job")


@pytest.fixture
def memory(tmp_path, monkeypatch) -> Path:
    """A folder of the test's own in the place of the machine's."""
    folder = tmp_path / "memory"
    folder.mkdir()
    monkeypatch.setattr("tasks.launch.docker.secret_files.MEMORY", folder)
    return folder


def test_they_lie_in_memory_while_the_container_starts(spec, tmp_path):
    if not MEMORY.is_dir():
        pytest.skip("this machine has no /dev/shm")
    place = places_for_secrets(spec)[0]
    assert place.parent == MEMORY
    assert place.stat().st_mode & 0o777 == 0o700
    with secret_files(spec, place, Context()) as files:
        path = files["HF_TOKEN"]
        about = path.stat()
        assert (path.read_text(), about.st_mode & 0o777, about.st_uid) == (TOKEN, 0o400, spec.user[0])
        assert not [file for file in tmp_path.rglob("*") if file.is_file()]
    with contextlib.suppress(FileNotFoundError):
        assert path.read_text() != TOKEN  # another worker of the tests may have its own there by now


def test_a_folder_of_somebody_else_is_not_used(spec, memory, tmp_path):
    ours, in_store = places_for_secrets(spec)
    assert (ours.parent, in_store.parent) == (memory, tmp_path)
    ours.chmod(0o755)
    assert places_for_secrets(spec) == [in_store]
    ours.rmdir()
    (tmp_path / "theirs").mkdir(mode=0o700)
    ours.symlink_to(tmp_path / "theirs")
    assert places_for_secrets(spec) == [in_store]
    if os.geteuid() == 0:
        ours.unlink()
        ours.mkdir(mode=0o700)
        os.chown(ours, 10001, 10001)
        assert places_for_secrets(spec) == [in_store]
    with secret_files(spec, in_store, Context()) as files:
        assert files["HF_TOKEN"].read_text() == TOKEN
        assert in_store.stat().st_mode & 0o777 == 0o700


def test_no_secret_is_written_where_others_may_read(spec, memory, tmp_path):
    """Also in the store, which may be a folder that others write to."""
    in_store = places_for_secrets(spec)[-1]
    (tmp_path / "theirs").mkdir(mode=0o755)
    for make in (lambda: in_store.mkdir(mode=0o755), lambda: in_store.symlink_to(tmp_path / "theirs")):
        make()
        with (
            pytest.raises(StoreError, match="is not this user's alone"),
            secret_files(spec, in_store, Context()),
        ):
            pytest.fail("written")
        in_store.unlink() if in_store.is_symlink() else in_store.rmdir()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_a_killed_run_left_is_swept_by_the_next(spec, tmp_path):
    place = tmp_path / "place"
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            (
                "import os; from pathlib import Path\n"
                "from tests.tasks.launch.docker.test_secret_files import Context, Spec, secret_files\n"
                f"with secret_files(Spec(Path({str(tmp_path)!r})), Path({str(place)!r}), Context()): os.kill(os.getpid(), 9)"
            ),
        ],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[4])},
        check=False,
    )
    assert killed.returncode == -9
    assert (place / "HF_TOKEN").read_text() == TOKEN
    with secret_files(Spec(tmp_path, secrets=("OTHER",)), place, Context()) as files:
        assert files == {}
    (place / "WANDB_API_KEY").write_text("another step's")
    with secret_files(spec, place, Context()) as files:
        assert sorted(path.name for path in place.iterdir()) == [".lock", "HF_TOKEN"]
    assert [path.name for path in place.iterdir()] == [".lock"]
