"""The export of trained weights: rounded once, and nothing of the SFT checkpoint's weights in it."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpo_core.contract.jobs import ExportJob
from dpo_core.contract.store import hash_files
from tests.tiny_stage import run_here


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_it_holds_the_trained_weights_and_reads_no_others(stage, tmp_path, precision, dtype):
    """The SFT checkpoint's own weights are not a number here; it is asked for its shape and its tokenizer alone."""
    shutil.copytree(stage.checkpoint.path, tmp_path / "sft")
    trained = load_file(stage.checkpoint.path / "model.safetensors")
    (tmp_path / "weights").mkdir()
    save_file(trained, tmp_path / "weights" / "model.safetensors", metadata={"format": "pt"})
    unread = {name: torch.full_like(tensor, float("nan")) for name, tensor in trained.items()}
    save_file(unread, tmp_path / "sft" / "model.safetensors", metadata={"format": "pt"})
    export = run_here(
        ExportJob(
            weights_path=tmp_path / "weights",
            weights_fingerprint="x",
            checkpoint=stage.checkpoint.model_copy(update={"path": tmp_path / "sft"}),
            precision=precision,
        ).at(tmp_path / "export")
    )
    exported = load_file(export.path / "model.safetensors")
    assert exported.keys() == trained.keys()
    for name, tensor in exported.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, trained[name].to(dtype)[: len(tensor)]), name
    assert list(export.files.items()) == list(hash_files(export.path).items()), (
        "in the order of one after the other"
    )
