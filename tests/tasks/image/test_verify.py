"""What a dependency image is looked at for while it is built: a compiler where it was asked for, and nowhere else."""

import importlib.util
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

PROGRAM = Path(__file__).parents[3] / "images" / "trainer" / "verify.py"


@pytest.fixture
def verify() -> ModuleType:
    """The program, which the image runs without the project."""
    spec = importlib.util.spec_from_file_location("verify", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def programs(tmp_path, monkeypatch) -> Path:
    """A folder that is all of the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def put(programs: Path, name: str) -> None:
    (programs / name).write_text("#!/bin/sh\n")
    (programs / name).chmod(0o755)


def test_a_compiler_is_refused_where_none_was_asked_for(verify, programs):
    assert verify.compiler_problems("none") == []
    for name in ("gcc", "nvcc"):
        put(programs, name)
    refused = verify.compiler_problems("none")
    assert [sentence.split()[0] for sentence in refused] == ["gcc", "nvcc"]
    assert all("set image.compiler to true" in sentence for sentence in refused)


def test_a_compiler_and_python_s_headers_are_needed_where_it_was(verify, programs, tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / name))
    missing = verify.compiler_problems("needed")
    assert [sentence.split(" lacks ")[1].split(",")[0] for sentence in missing] == [
        "a C compiler (gcc or clang)",
        "Python.h",
    ]
    put(programs, "clang")
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "Python.h").touch()
    assert verify.compiler_problems("needed") == []
