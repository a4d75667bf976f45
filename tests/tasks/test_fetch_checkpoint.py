"""Fetching what must be converted first: GGUF, 8-bit floats, and pickle weights allowed by name."""

import json
from pathlib import Path

import pytest
import torch
from prefect.logging import disable_run_logger
from safetensors.torch import load_file

from dpo_core.contract.config import CheckpointConfig
from dpo_core.contract.errors import CheckpointError
from dpo_core.contract.refs import CheckpointRef
from dpo_core.contract.store import hash_files
from tasks.fetch_checkpoint import fetch_checkpoint
from tasks.launch.workplace import Workplace
from tests.dpo_core.steps.test_dequantise import fp8_checkpoint
from tests.launch_here import LaunchHere
from tests.tiny_gguf import make_gguf


def fetch(source: Path, store: Path, launcher: LaunchHere, **fields: object) -> CheckpointRef:
    with disable_run_logger():
        return fetch_checkpoint.fn(CheckpointConfig(source=str(source), **fields), Workplace(store, launcher))


def test_gguf_is_converted_once(tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    make_gguf(tmp_path / "gguf" / "tiny.gguf")
    launcher = LaunchHere()
    first = fetch(tmp_path / "gguf", tmp_path / "store", launcher)
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= set(first.files)
    assert fetch(tmp_path / "gguf", tmp_path / "store", launcher) == first
    assert launcher.steps == ["convert"]
    assert hash_files(first.path) == first.files


def test_8_bit_floats_are_made_plain_once(tmp_path: Path) -> None:
    full = fp8_checkpoint(tmp_path / "fp8", (16, 16), "_scale_inv", {"quant_method": "fp8"})
    launcher = LaunchHere()
    first = fetch(tmp_path / "fp8", tmp_path / "store", launcher)
    assert "quantization_config" not in json.loads((first.path / "config.json").read_text())
    stored = {
        name: tensor for file in first.path.glob("*.safetensors") for name, tensor in load_file(file).items()
    }
    assert stored.keys() == full.keys()
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert {"tokenizer.json", "chat_template.jinja"} <= set(first.files)
    assert fetch(tmp_path / "fp8", tmp_path / "store", launcher) == first
    assert launcher.steps == ["dequantise"]
    assert hash_files(first.path) == first.files


def test_gguf_without_template_is_refused_after_conversion(tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    make_gguf(tmp_path / "gguf" / "tiny.gguf", chat_template=None)
    with pytest.raises(CheckpointError, match="no chat template"):
        fetch(tmp_path / "gguf", tmp_path / "store", LaunchHere())


def test_allowed_pickle_is_converted_and_its_neighbours_count(checkpoint: Path, tmp_path: Path) -> None:
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="allow_pickle"):
        fetch(checkpoint, tmp_path / "store", LaunchHere())
    launcher, allowed = LaunchHere(), ("pytorch_model.bin",)
    first = fetch(checkpoint, tmp_path / "store", launcher, allow_pickle=allowed)
    assert "pytorch_model.bin" not in first.files
    (checkpoint / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    second = fetch(checkpoint, tmp_path / "store", launcher, allow_pickle=allowed)
    assert second.fingerprint == first.fingerprint
    assert second.tokenizer_fingerprint != first.tokenizer_fingerprint
    assert launcher.steps == ["convert", "convert"]


def test_a_cut_gguf_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    make_gguf(tmp_path / "gguf" / "tiny.gguf")
    whole = (tmp_path / "gguf" / "tiny.gguf").read_bytes()
    (tmp_path / "gguf" / "tiny.gguf").write_bytes(whole[:5000])
    with pytest.raises(CheckpointError, match=r"tiny\.gguf \(5000 bytes\)"):
        fetch(tmp_path / "gguf", tmp_path / "store", LaunchHere())


@pytest.mark.parametrize("kind", ["gguf", "pickle"])
def test_a_link_beside_what_is_converted_reaches_no_step(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "own").write_text("{{ 'what the owner of this machine wrote' }}")
    (checkpoint / "model.safetensors").unlink()
    if kind == "gguf":
        make_gguf(checkpoint / "tiny.gguf")
    else:
        torch.save({}, checkpoint / "pytorch_model.bin")
    (checkpoint / "chat_template.jinja").unlink()
    (checkpoint / "chat_template.jinja").symlink_to(tmp_path / "own")
    launcher = LaunchHere()
    with pytest.raises(
        CheckpointError, match=r"chat_template\.jinja is a link to .*/own, outside the checkpoint"
    ):
        fetch(checkpoint, tmp_path / "store", launcher, allow_pickle=("pytorch_model.bin",))
    assert launcher.steps == []
