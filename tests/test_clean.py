"""`make clean` removes an environment and a store that are ours, the store after a yes, and nothing behind a link."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "Makefile", tmp_path)
    return tmp_path


def made(folder: Path, mark: str) -> Path:
    folder.mkdir(parents=True)
    (folder / mark).write_text("")
    return folder


def clean(folder: Path, answer: str = "y\n", *settings: str) -> None:
    """Without what the `make` that runs these tests hands down: its VENV is the environment that they run in."""
    subprocess.run(
        ["make", "-s", "clean", *settings],
        cwd=folder,
        env={"PATH": os.environ["PATH"]},
        input=answer,
        text=True,
        check=True,
        timeout=30,
    )


@pytest.mark.parametrize(
    ("answer", "stays"), [("y\n", False), ("n\n", True), ("", True), ("yes please\n", True)]
)
def test_a_store_goes_after_a_yes_alone(folder: Path, answer: str, stays: bool):
    environment, store = made(folder / ".venv", "pyvenv.cfg"), made(folder / ".pairline", ".pairline-store")
    clean(folder, answer)
    assert (environment.exists(), store.exists()) == (False, stays)


def test_the_environment_of_a_make_that_runs_the_tests_stays(folder: Path, monkeypatch: pytest.MonkeyPatch):
    environment = made(folder / "of the tests", "pyvenv.cfg")
    monkeypatch.setenv("MAKEFLAGS", f" -- VENV={environment}")
    clean(folder)
    assert environment.exists()


def test_what_is_not_marked_stays(folder: Path):
    environment, store = made(folder / ".venv", "notes"), made(folder / ".pairline", "notes")
    clean(folder)
    assert environment.exists()
    assert store.exists()


def test_what_a_link_leads_to_stays(folder: Path):
    environment, store = (
        made(folder / "mine" / "a", "pyvenv.cfg"),
        made(folder / "mine" / "b", ".pairline-store"),
    )
    (folder / ".venv").symlink_to(environment)
    (folder / ".pairline").symlink_to(store)
    clean(folder)
    assert (environment / "pyvenv.cfg").exists()
    assert (store / ".pairline-store").exists()


def test_a_name_with_a_blank_is_one_name(folder: Path):
    """It was two, and neither was looked at before both were removed."""
    others = [made(folder / "my", "thesis"), made(folder / "env", "thesis")]
    clean(folder, "", "VENV=my env")
    assert all(other.exists() for other in others)
