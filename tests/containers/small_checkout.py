"""A checkout whose image is built in seconds: the real Dockerfile and dpo_core, but tiny packages instead of torch's."""

import subprocess
import sys
import tempfile
from pathlib import Path

from dpo_core.contract.store import sha256_file
from tasks.image.context import read_sources
from tasks.image.requirements import GGUF_LOCK, GGUF_PACKAGES
from tasks.image.trainer_image import CHECKOUT
from tests.tasks.image.checkout import commit, git, write
from tests.tasks.image.wheels import make_wheel

REPOSITORY = "pairline-small"
VERIFY = "import alpha\nprint('alpha loads')\n"


def make_small_checkout(root: Path, label: str) -> Path:
    """Alpha 1.0 is what the trainer needs. ``label`` (name=value) marks the images, so that a test finds its own."""
    root.mkdir(parents=True)
    git(root, "init", "--quiet")
    for name, content in read_sources(CHECKOUT, "tag").files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with tempfile.TemporaryDirectory() as folder:
        wheels = {
            name: sha256_file(make_wheel(Path(folder), name, "1.0")) for name in ("alpha", *GGUF_PACKAGES)
        }
    locks = {name: f"{name}==1.0 --hash=sha256:{sha256}\n" for name, sha256 in wheels.items()}
    write(
        root,
        **{
            "requirements/train-cpu.txt": locks.pop("alpha"),
            "images/trainer/verify.py": VERIFY,
            GGUF_LOCK: "".join(locks.values()),
        },
    )
    dockerfile = root / "images/trainer/Dockerfile"
    stage = "FROM ${BASE_IMAGE} AS dependencies\n"
    assert dockerfile.read_text().count(stage) == 1
    dockerfile.write_text(dockerfile.read_text().replace(stage, f"{stage}LABEL {label}\n"))
    commit(root, "small")
    return root


def make_small_wheelhouse(folder: Path) -> Path:
    """The wheels for it; pip is the real one."""
    for name in ("alpha", *GGUF_PACKAGES):
        make_wheel(folder, name, "1.0")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--require-hashes",
            "--dest",
            folder,
            "--requirement",
            CHECKOUT / "images/trainer/installer.txt",
        ],
        check=True,
    )
    return folder
