"""The export beside 4-bit weights goes tensor by tensor. bitsandbytes is not here: what it does to a matrix is stood in for.

With bitsandbytes 0.50 on a CPU the values were those of a model that transformers loads in 4 bits and dequantises, bit for
bit: tied and untied heads, checkpoints in float32 and in bf16.
"""

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpo_core.contract.config import AdapterConfig
from dpo_core.contract.errors import ConfigError
from dpo_core.contract.jobs import ExportJob
from dpo_core.model.adapter import load_policy
from dpo_core.model.four_bits import held_in_four_bits, rounding
from dpo_core.model.load import WITHOUT_MEMORY, load_model
from dpo_core.steps import export
from tests.tiny_architectures import PACKED, tiny
from tests.tiny_models import make_model
from tests.tiny_stage import checkpoint_ref, run_here

QLORA = AdapterConfig(kind="qlora", rank=4)
LINEARS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def coarse(weight: torch.Tensor) -> torch.Tensor:
    """As 4 bits do, if not as well."""
    return (weight * 64).round() / 64


@pytest.mark.parametrize("tied", [True, False])
def test_layers_linears_are_held_in_four_bits_and_the_ends_are_not(tmp_path, tied):
    ref = checkpoint_ref(make_model(tmp_path, tie_word_embeddings=tied))
    names = held_in_four_bits(load_model(ref, device=WITHOUT_MEMORY))
    assert {name.split(".")[-2] for name in names} == LINEARS
    assert len(names) == 2 * len(LINEARS)
    assert not any(names.values())


def test_matrices_that_are_stored_transposed_are_told():
    names = held_in_four_bits(tiny(PACKED["gpt2"]))
    assert names
    assert all(names.values())


def test_an_export_adds_the_adapter_to_what_four_bits_stand_for_and_loads_no_whole_model(
    stage, tmp_path, monkeypatch
):
    """A card of 24 GB that trained 8B beside an adapter has no room for it in float32."""
    policy = load_policy(stage.checkpoint, QLORA.model_copy(update={"kind": "lora"}), seed=0)
    adapter = {name: p.detach() for name, p in policy.named_parameters() if p.requires_grad}
    torch.manual_seed(1)
    for name, values in adapter.items():
        if "lora_B" in name:
            values.normal_(std=0.02)
    (tmp_path / "weights").mkdir()
    save_file(adapter, tmp_path / "weights" / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(export, "rounding", lambda model: dict.fromkeys(held_in_four_bits(model), coarse))
    monkeypatch.setattr(export, "load_in_full", None)
    job = ExportJob(
        weights_path=tmp_path / "weights",
        weights_fingerprint="x",
        checkpoint=stage.checkpoint,
        adapter=QLORA,
        precision="fp32",
    )
    exported = load_file(run_here(job.at(tmp_path / "export")).path / "model.safetensors")
    for name, weight in load_file(stage.checkpoint.path / "model.safetensors").items():
        expected = weight
        if (layer := name.removesuffix(".weight")).rpartition(".")[2] in LINEARS:
            a, b = (adapter[f"{layer}.lora_{part}.default.weight"] for part in "AB")
            expected = coarse(weight) + b @ a * (QLORA.alpha / QLORA.rank)
            assert not torch.equal(coarse(weight), weight)
        assert torch.equal(exported[name][: len(expected)], expected), name


def test_without_the_package_it_is_named():
    with pytest.raises(ConfigError, match="needs the package bitsandbytes"):
        rounding(tiny(PACKED["llama"]))
