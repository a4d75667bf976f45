"""The base image is made from Debian packages, the same bits each time."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dpo_core.contract.store import sha256_file
from tasks.image.trainer_image import CHECKOUT

pytestmark = pytest.mark.integration
NAME = f"pairline-base-test:{os.getpid()}"


def build(out: Path, **environment: str) -> str:
    """Into a file. -> the image's id"""
    return subprocess.run(
        [CHECKOUT / "images/base/build.sh", NAME],
        check=True,
        text=True,
        env=os.environ | environment | {"OUT": str(out)},
        capture_output=True,
    ).stdout.strip()


def test_two_builds_are_bit_identical(tmp_path, shared_engine, base_image):
    """In other surroundings as well. The default base is one of them, unless Debian has published an update since."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is not installed")
    made = build(tmp_path / "a", PYTHONDONTWRITEBYTECODE="1", LC_ALL="C", HOME=str(tmp_path))
    if made != base_image:
        assert build(tmp_path / "b", PYTHONDONTWRITEBYTECODE="") == made
        assert sha256_file(tmp_path / "a") == sha256_file(tmp_path / "b")
    with (tmp_path / "a").open("rb") as file:
        (loaded,) = shared_engine.images.load(file)
    shared_engine.images.remove(NAME)  # not any tag: the default base may have the same id
    assert loaded.id == made
    assert loaded.attrs["Size"] < 150e6
