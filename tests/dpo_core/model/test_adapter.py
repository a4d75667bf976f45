"""LoRA: the reference is the policy without its adapter, only the adapter is trained and kept, the export is merged."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dpo_core.contract.config import AdapterConfig, OptimConfig
from dpo_core.contract.cuda8bit import check_cuda8bit
from dpo_core.contract.errors import ConfigError, ReferenceMismatch
from dpo_core.contract.jobs import ExportJob
from dpo_core.contract.progress import Progress
from dpo_core.contract.store import sha256_file
from dpo_core.data.pair_batch import collate
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.data.reference_cache import read_aligned
from dpo_core.engine.checkpoint import load_weights
from dpo_core.model.adapter import (
    adapter_disabled,
    add_adapter,
    count_parameters,
    halve_frozen,
    load_policy,
    target_names,
)
from dpo_core.model.forward import PairScorer, choose_layout, probe_pairs
from dpo_core.model.load import load_model
from dpo_core.steps.train import check_base, set_up
from dpo_core.training.stop_request import StopRequest
from flows.settings.stage_config import StageConfig
from tests.dpo_core.training.test_resume import assert_same_run
from tests.programs.held_files import HELD_AT
from tests.step_process import kill_when, metrics_of, start
from tests.tiny_models import make_model
from tests.tiny_stage import checkpoint_ref, reference_job, run_here

LORA = AdapterConfig(kind="lora", rank=4, alpha=8)
LEARNING_RATE = 1e-2
# Two blocks of hidden size 32: q, o 32 + 32 sides, k, v 32 + 16, gate, up, down 32 + 64.
NUM_TRAINED = 4 * 2 * (2 * 64 + 2 * 48 + 3 * 96)


def lora_job(stage, folder, **settings):
    return stage.train_job(
        folder, "dpo", **({"adapter": LORA, "learning_rate": LEARNING_RATE, "num_epochs": 2} | settings)
    )


@pytest.fixture(scope="module")
def trained(stage, tmp_path_factory):
    """18 steps over an adapter on every linear layer, checkpoints after 7 and 14."""
    return run_here(lora_job(stage, tmp_path_factory.mktemp("lora"), checkpoint_every=7))


def export(stage, trained, folder, **settings):
    return run_here(
        ExportJob(
            **(
                {
                    "weights_path": trained.weights_path,
                    "adapter": LORA,
                    "precision": "fp32",
                    "weights_fingerprint": trained.weights_fingerprint,
                    "checkpoint": stage.checkpoint,
                }
                | settings
            )
        ).at(folder)
    )


def policy_of(stage, trained):
    policy = load_policy(stage.checkpoint, LORA, seed=0)
    load_weights(trained.weights_path, policy)
    return policy


IDS = torch.arange(3, 40)[None]


def test_only_the_adapter_is_trained_and_kept(stage, trained):
    assert (trained.trained_parameters, trained.adapter) == (NUM_TRAINED, LORA)
    assert trained.all_parameters == NUM_TRAINED + load_model(stage.checkpoint).num_parameters()
    checkpoint = trained.metrics_path.parent / "checkpoints" / "step-00000014"
    for folder in (trained.weights_path, checkpoint):
        tensors = load_file(folder / "model.safetensors")
        assert sum(tensor.numel() for tensor in tensors.values()) == NUM_TRAINED
        assert all(".lora_" in name for name in tensors)
    moments = load_file(checkpoint / "optimizer.safetensors")
    assert (
        sum(tensor.numel() for name, tensor in moments.items() if name.endswith("::exp_avg")) == NUM_TRAINED
    )
    assert all(".lora_" in name for name in moments)
    assert any(
        tensor.abs().max() > 0
        for name, tensor in load_file(trained.weights_path / "model.safetensors").items()
        if "lora_B" in name
    )


def test_it_starts_as_the_reference_and_learns(stage, trained):
    assert trained.guard["loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert trained.first_metrics["loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert trained.last_metrics["rewards/margins"] > 0.5
    assert trained.base_check["largest_difference_per_token"] == trained.guard["largest_difference_per_token"]


def test_without_its_adapter_the_trained_policy_is_the_cached_reference(stage, trained):
    policy = policy_of(stage, trained)
    scorer, dataset = PairScorer(policy, "fp32"), PairDataset.open(stage.data.path, "train")
    cached = read_aligned(stage.reference.reference.path, "train", dataset.row_keys)
    batch = collate([dataset[row] for row in range(16)], range(16), "prefix_sharing")
    with torch.no_grad():
        on = scorer(batch).sums_S.view(-1, 2)
        with adapter_disabled(policy):
            off = scorer(batch).sums_S.view(-1, 2)
    np.testing.assert_allclose(off.numpy(), cached.sums[:16], rtol=1e-5)
    assert (on - off).abs().min() > 1e-3
    assert count_parameters(policy)[0] == NUM_TRAINED  # switched on again, it is trained again


def test_frozen_weights_get_no_gradient_and_no_moments(stage, tmp_path):
    trainer = set_up(
        lora_job(stage, tmp_path, max_steps=2), Progress("train", sink=lambda event: None), StopRequest()
    )
    before = {
        name: p.detach().clone()
        for name, p in trainer.engine.scorer.named_parameters()
        if not p.requires_grad
    }
    trainer.train()
    for name, parameter in trainer.engine.scorer.named_parameters():
        if name in before:
            assert parameter.grad is None
            assert torch.equal(parameter, before[name])
    assert len(trainer.engine.optimizer_tensors()) == 3 * 28  # moments and step of 14 layers' A and B


def test_a_base_that_training_changed_is_found(stage, tmp_path):
    job = lora_job(stage, tmp_path, max_steps=1)
    trainer = set_up(job, Progress("train", sink=lambda event: None), StopRequest())
    trainer.train()
    assert check_base(trainer)["largest_difference_per_token"] < 1e-5
    with torch.no_grad():
        trainer.engine.scorer.model.model.layers[0].mlp.up_proj.base_layer.weight.mul_(1.05)
    with pytest.raises(
        ReferenceMismatch, match="After training an adapter the policy without it must still be the ref"
    ):
        check_base(trainer)


def test_another_models_values_are_refused_with_an_adapter_too(stage, tmp_path):
    other = checkpoint_ref(make_model(tmp_path / "other", seed=1))
    values = run_here(reference_job(tmp_path / "reference", stage.data, other)).reference
    with pytest.raises(ReferenceMismatch, match="Before the first update"):
        run_here(lora_job(stage, tmp_path / "run", reference=values))
    result = run_here(
        lora_job(stage, tmp_path / "named", reference=values, reference_checkpoint=other, max_steps=2)
    )
    assert result.guard["largest_difference_per_token"] < 1e-5
    assert result.base_check == {}


def test_the_base_is_checked_in_bf16_too(stage, tmp_path):
    values = run_here(
        reference_job(tmp_path / "reference", stage.data, stage.checkpoint, precision="bf16")
    ).reference
    result = run_here(lora_job(stage, tmp_path / "run", reference=values, precision="bf16"))
    assert result.base_check["allowed_difference_per_token"] == 0.05
    assert result.base_check["largest_difference_per_token"] < 0.01
    assert {tensor.dtype for tensor in load_file(result.weights_path / "model.safetensors").values()} == {
        torch.float32
    }


def test_a_loss_without_a_reference_needs_no_check(stage, tmp_path):
    result = run_here(stage.train_job(tmp_path, "simpo", adapter=LORA, max_steps=2))
    assert (result.guard, result.base_check) == ({}, {})


def test_gradient_checkpointing_trains_the_same_adapter(stage, trained, tmp_path):
    result = run_here(lora_job(stage, tmp_path, gradient_checkpointing=True))
    expected = load_file(trained.weights_path / "model.safetensors")
    for name, tensor in load_file(result.weights_path / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.integration
def test_killed_and_resumed_gives_the_same_bits(stage, tmp_path, monkeypatch):
    monkeypatch.setenv(HELD_AT, "/checkpoints/step-:20")  # in its 40th step of 90 at the latest
    whole = run_here(lora_job(stage, tmp_path / "whole", num_epochs=10, checkpoint_every=2))
    job = lora_job(stage, tmp_path / "killed", num_epochs=10, checkpoint_every=2)
    step = start(job, module="tests.programs.held_files")
    kill_when(step, lambda: len(metrics_of(tmp_path / "killed")) >= 7)
    result = run_here(job)
    assert result.resumed_from_step >= 6
    assert_same_run(result, whole)
    assert result.base_check == whole.base_check


def test_the_merged_export_answers_as_the_adapter_does(stage, trained, tmp_path):
    exported = export(stage, trained, tmp_path)
    policy, merged = policy_of(stage, trained), AutoModelForCausalLM.from_pretrained(exported.path)
    base = load_model(stage.checkpoint)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    with torch.no_grad():
        on, off = policy(IDS).logits, base(IDS).logits
        torch.testing.assert_close(merged(IDS).logits[..., : on.shape[-1]], on, rtol=1e-4, atol=1e-4)
        assert (on - off).abs().max() > 0.1


def test_the_adapter_is_kept_in_pefts_format(stage, trained, tmp_path):
    exported = export(stage, trained, tmp_path)
    assert exported.adapter_path == exported.path / "adapter"
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} < exported.files.keys()
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(stage.checkpoint.path), exported.adapter_path
    )
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, policy_of(stage, trained)(IDS).logits)
    config = json.loads((exported.adapter_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == (None, 4, 8)
    assert str(stage.root) not in json.dumps(config)


def test_the_same_adapter_gives_the_same_files_and_names_a_hub_parent(stage, trained, tmp_path):
    once, again = (export(stage, trained, tmp_path / name) for name in ("once", "again"))
    assert once.files == again.files
    plain = export(
        stage,
        trained,
        tmp_path / "hub",
        checkpoint=stage.checkpoint.model_copy(update={"source": "org/sft", "revision": "c" * 40}),
    )
    config = json.loads((plain.adapter_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/sft", "c" * 40)
    assert (
        plain.fingerprint == once.fingerprint
    )  # the merged weights are the checkpoint; the adapter is beside it


def test_named_targets_get_adapters_and_others_do_not(stage, tmp_path):
    model = load_policy(
        stage.checkpoint, LORA.model_copy(update={"target_modules": ("q_proj", "v_proj")}), seed=0
    )
    assert {name.split(".")[-4] for name, p in model.named_parameters() if p.requires_grad} == {
        "q_proj",
        "v_proj",
    }
    everything = add_adapter(load_model(stage.checkpoint), LORA, seed=0)
    assert count_parameters(everything)[0] == NUM_TRAINED


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            ("q_proj", "query"),
            "names query, but LlamaForCausalLM has no such layer. Name some of down_proj, gate_proj, k_proj",
        ),
        (("lm_head",), "names lm_head, which is the embedding or the output head. They may be tied"),
        (("embed_tokens",), "names embed_tokens, which is the embedding or the output head"),
        (
            ("input_layernorm",),
            r"names input_layernorm, but model.layers.0.input_layernorm is no linear layer",
        ),
        (("mlp",), "is no linear layer"),
    ],
)
def test_targets_that_cannot_have_an_adapter_are_refused(stage, tmp_path, targets, message):
    with pytest.raises(ConfigError, match=message):
        run_here(lora_job(stage, tmp_path, adapter=LORA.model_copy(update={"target_modules": targets})))
    assert metrics_of(tmp_path) == []


def test_untied_heads_get_no_adapter_by_all_linear(tmp_path):
    model = load_model(checkpoint_ref(make_model(tmp_path, tie_word_embeddings=False)))
    assert target_names(model, LORA) == [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"dropout": 0.1},
        {"target_modules": []},
        {"rank": 0},
        {"alpha": 0},
        {"modules_to_save": ["lm_head"]},
        {"kind": "dora"},
    ],
)
def test_settings_that_mean_nothing_here_are_refused(settings):
    with pytest.raises(ValidationError):
        AdapterConfig(**({"kind": "lora"} | settings))


QLORA, EIGHT_BIT = AdapterConfig(kind="qlora"), OptimConfig(optimizer="adamw_8bit")


@pytest.mark.skipif(torch.cuda.is_available(), reason="refusals of a machine without CUDA")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"adapter": QLORA, "precision": "bf16"},
            "adapter.kind qlora needs a CUDA GPU, and this machine shows none. Use adapter.kind lora",
        ),
        ({"optim": EIGHT_BIT}, "optim.optimizer adamw_8bit needs a CUDA GPU, .* Use optim.optimizer adamw,"),
    ],
)
def test_8_bit_settings_are_refused_without_cuda(stage, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        run_here(stage.train_job(tmp_path, **settings))


def test_with_a_gpu_the_missing_package_is_named():
    for adapter, optim in ((QLORA, OptimConfig()), (AdapterConfig(), EIGHT_BIT)):
        with pytest.raises(
            ConfigError, match=r"needs the package bitsandbytes, .* pip install 'pairline\[cuda8bit\]'"
        ):
            check_cuda8bit(adapter, optim, num_gpus=1)
        check_cuda8bit(adapter, optim, num_gpus=1, package_is_here=False)  # a container brings its own
    check_cuda8bit(LORA, OptimConfig(), num_gpus=0)


def test_settings_that_8_bits_do_not_go_with_are_named(stage, tmp_path):
    sections = {"checkpoint": {"source": "x"}, "data": {"sources": [{"source": "y"}]}}
    for more, message in (
        ({"adapter": {"kind": "qlora"}}, "qlora computes in bf16, but train.precision is fp32"),
        (
            {"adapter": {"kind": "qlora"}, "train": {"precision": "bf16"}, "compute": {"sharding": "zero3"}},
            "adapter.kind qlora does not go with compute.sharding zero3",
        ),
        (
            {"optim": {"optimizer": "adamw_8bit"}, "compute": {"sharding": "fsdp2"}},
            "optim.optimizer adamw_8bit does not go with compute.sharding fsdp2",
        ),
    ):
        with pytest.raises(ValidationError, match=message):
            StageConfig.model_validate(sections | more)
    with pytest.raises(ConfigError, match="qlora computes in bf16"):
        run_here(stage.train_job(tmp_path, adapter=QLORA))


@pytest.mark.skipif(torch.cuda.is_available(), reason="refusals of a machine without CUDA")
def test_4_bit_reference_values_are_refused_without_cuda(stage, tmp_path):
    job = reference_job(tmp_path / "reference", stage.data, stage.checkpoint, base_weights="nf4")
    with pytest.raises(ConfigError, match=r"adapter\.kind qlora needs a CUDA GPU"):
        run_here(job)


def test_equal_seeds_start_alike_and_others_do_not(stage):
    starts = [load_policy(stage.checkpoint, LORA, seed) for seed in (1, 1, 2)]
    a, b, c = (
        dict(model.named_parameters())["model.layers.0.mlp.up_proj.lora_A.default.weight"] for model in starts
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert sha256_file(stage.checkpoint.path / "model.safetensors") == stage.checkpoint.fingerprint


def test_frozen_matrices_in_half_give_the_same_numbers_and_keep_the_fast_layout(stage):
    """Of a checkpoint in bf16, as those that people train are: autocast rounds what is exact already."""
    dataset = PairDataset.open(stage.data.path, "train")
    batch = collate([dataset[row] for row in range(3)], range(3), "packed")
    sums = []
    for in_half in (False, True):
        policy = load_policy(stage.checkpoint, AdapterConfig(kind="lora"), seed=1)
        for parameter in policy.parameters():
            parameter.data = parameter.data.bfloat16().float()
        if in_half:
            halve_frozen(policy)
        scorer = PairScorer(policy, "bf16")
        assert choose_layout(scorer, probe_pairs(dataset), "packed", torch.device("cpu")) == "packed"
        scores = scorer(batch)
        scores.sums_S.sum().backward()
        slopes = [parameter.grad for parameter in policy.parameters() if parameter.requires_grad]
        sums.append((scores.sums_S.detach(), *slopes))
    frozen = {name: value.dtype for name, value in policy.named_parameters() if not value.requires_grad}
    assert {kind for name, kind in frozen.items() if "norm" not in name} == {torch.bfloat16}
    for full, half in zip(*sums, strict=True):
        assert torch.equal(full, half)
