"""Weights in 8-bit floats become the float32 numbers that they stand for, in a checkpoint that stock transformers loads."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dpo_core.contract.data_jobs import ConvertResult, DequantiseJob
from dpo_core.contract.errors import CheckpointError
from dpo_core.contract.refs import CheckpointRef
from dpo_core.model.load import load_model
from dpo_core.steps.dequantise import dequantised
from tests.tiny_models import make_model
from tests.tiny_stage import run_here

LARGEST = 448.0  # of float8_e4m3fn
BLOCK = 24  # divides neither 32 nor 64


def quantise(weight: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [R, C] in 8 bits and its scales [ceil(R/b), ceil(C/b)], block by block, as DeepSeek-V3 does."""
    rows, columns = (range(0, size, side) for size, side in zip(weight.shape, block, strict=True))
    scale = torch.empty(len(rows), len(columns))
    quantised = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            place = (slice(row, row + block[0]), slice(column, column + block[1]))
            scale[i, j] = weight[place].abs().max().clamp(min=1e-12) / LARGEST
            quantised[place] = (weight[place] / scale[i, j]).to(torch.float8_e4m3fn)
    return quantised, scale


def fp8_checkpoint(folder: Path, block: tuple[int, int], ending: str, mark: dict) -> dict[str, torch.Tensor]:
    """A tiny checkpoint with its projections in 8 bits. -> the full weights"""
    make_model(folder)
    full = load_file(folder / "model.safetensors")
    stored: dict[str, torch.Tensor] = {}
    for name, weight in full.items():
        if "_proj" in name:
            sides = tuple(side or size for side, size in zip(block, weight.shape, strict=True))
            stored[name], stored[name + ending] = quantise(weight, (sides[0], sides[1]))
            stored[name.replace("weight", "input_scale")] = torch.ones(())
        else:
            stored[name] = weight
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": mark}))
    return full


def run(folder: Path, out: Path, *files: str) -> ConvertResult:
    files = files or ("model.safetensors",)
    return run_here(DequantiseJob(source_dir=folder, source_sha256="s", weight_files=files).at(out))


KINDS = {
    "blocks": ((BLOCK, BLOCK), "_scale_inv", {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}),
    "blocks told by their shapes": ((16, 16), "_scale_inv", {"quant_method": "fp8"}),
    "rows": ((1, 0), "_scale", {"quant_method": "compressed-tensors", "format": "float-quantized"}),
    "one scale": ((0, 0), "_scale", {"quant_method": "fbgemm_fp8"}),
}


@pytest.mark.parametrize(("block", "ending", "mark"), KINDS.values(), ids=KINDS)
def test_the_weights_are_those_that_the_numbers_and_scales_stand_for(
    block: tuple[int, int], ending: str, mark: dict, tmp_path: Path
):
    full = fp8_checkpoint(tmp_path / "fp8", block, ending, mark)
    path = run(tmp_path / "fp8", tmp_path / "out").path
    model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert getattr(model.config, "quantization_config", None) is None
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        expected = full.get(name, full["model.embed_tokens.weight"])
        if (
            "_proj" in name
        ):  # 3 bits of mantissa: half a unit is a sixteenth, and near zero a step is 2^-9 of 448
            torch.testing.assert_close(
                tensor, expected, rtol=1 / 16, atol=float(expected.abs().max()) / LARGEST / 512
            )
        else:
            assert torch.equal(tensor, expected)
    model.save_pretrained(tmp_path / "again")  # it remembers no quantised origin


def test_a_scale_in_another_file_than_its_weight_is_found_and_the_index_names_all(tmp_path: Path):
    fp8_checkpoint(tmp_path / "fp8", (16, 16), "_scale_inv", {"quant_method": "fp8"})
    whole = run(tmp_path / "fp8", tmp_path / "whole").path
    stored = load_file(tmp_path / "fp8/model.safetensors")
    (tmp_path / "fp8/model.safetensors").unlink()
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    for name, is_scale in zip(names, (False, True), strict=True):
        part = {key: value for key, value in stored.items() if ("scale" in key or "norm" in key) is is_scale}
        save_file(part, tmp_path / "fp8" / name, metadata={"format": "pt"})
    split = run(tmp_path / "fp8", tmp_path / "split", *names).path
    one, two = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (whole, split))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_block_by_hand():
    weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]).to(torch.float8_e4m3fn)
    scale = torch.tensor([[1.0, 10.0], [100.0, 0.5]])
    expected = torch.tensor([[1.0, 2.0, 30.0], [4.0, 5.0, 60.0], [700.0, 800.0, 4.5]])
    assert torch.equal(dequantised(weight, scale, (2, 2)), expected)
    assert torch.equal(dequantised(weight, scale, None), expected)
    per_row = torch.tensor([1.0, 2.0, 0.5])
    assert torch.equal(dequantised(weight, per_row, None)[2], torch.tensor([3.5, 4.0, 4.5]))
    assert torch.equal(dequantised(weight[None], scale[None], (2, 2))[0], expected)  # an expert's


def test_scales_that_do_not_fit_and_weights_without_any_are_named(tmp_path: Path):
    fp8_checkpoint(tmp_path / "fp8", (16, 16), "_scale_inv", {"quant_method": "fp8"})
    file = tmp_path / "fp8/model.safetensors"
    stored = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(stored | {f"{name}_scale_inv": torch.ones(3, 5, 7)}, file)
    with pytest.raises(CheckpointError, match=rf"{name} has a scale of shape \[3, 5, 7\]"):
        run(tmp_path / "fp8", tmp_path / "a")
    save_file({key: value for key, value in stored.items() if key != f"{name}_scale_inv"}, file)
    with pytest.raises(CheckpointError, match=f"{name} in 8-bit floats without a scale"):
        run(tmp_path / "fp8", tmp_path / "b")


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (32, 1), (0, 2)], ids=str)
def test_scales_of_other_blocks_than_the_config_says_are_named(shape: tuple[int, int]):
    """One row of scales for two rows of blocks would be repeated, and give other weights without a word."""
    weight = torch.ones(32, 48).to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="a scale of shape"):
        dequantised(weight, torch.ones(shape), (16, 24))


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(factor: float, tmp_path: Path):
    fp8_checkpoint(tmp_path / "fp8", (16, 16), "_scale_inv", {"quant_method": "fp8"})
    file, name = tmp_path / "fp8/model.safetensors", "model.layers.0.mlp.up_proj.weight"
    stored = load_file(file)
    save_file(stored | {f"{name}_scale_inv": stored[f"{name}_scale_inv"] * factor}, file)
    with pytest.raises(CheckpointError, match=f"{name} times its scale is not finite"):
        run(tmp_path / "fp8", tmp_path / "out")


def test_weights_that_nobody_made_plain_are_refused_before_anything_is_computed(tmp_path: Path):
    """transformers would compute with them, and an export find no name for their numbers after the training."""
    fp8_checkpoint(tmp_path / "sft", (16, 16), "_scale_inv", {"quant_method": "fp8"})
    checkpoint = CheckpointRef(
        path=tmp_path / "sft", source="sft", fingerprint="w", tokenizer_fingerprint="t"
    )
    with pytest.raises(CheckpointError, match=r"weights are quantised \(fp8\).*`pairline prepare`"):
        load_model(checkpoint)
