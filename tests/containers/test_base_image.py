"""The base image is made from Debian packages, the same bits each time."""

import os
import shutil
import subprocess

import pytest

from dpo_core.store import sha256_file
from tasks.image.trainer_image import CHECKOUT

pytestmark = pytest.mark.integration


def test_two_builds_are_bit_identical(tmp_path, shared_engine):
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is not installed")
    ids = [subprocess.run([CHECKOUT / "images/base/build.sh", f"pairline-base-test:{os.getpid()}"], check=True, text=True,
                          env=os.environ | {"OUT": str(tmp_path / name)}, capture_output=True).stdout for name in "ab"]
    assert ids[0] == ids[1]
    assert sha256_file(tmp_path / "a") == sha256_file(tmp_path / "b")
    with (tmp_path / "a").open("rb") as file:
        (loaded,) = shared_engine.images.load(file)
    shared_engine.images.remove(loaded.tags[0])
    assert loaded.id == ids[0].strip()
    assert loaded.attrs["Size"] < 150e6
