"""The memory of a step as the plan estimates it, against what FakeTensor counts of this program's own step."""

from unittest import mock

import pytest
import torch
from transformers import LlamaConfig, Olmo3Config

from benchmarks.fake_step import fake_scoring, fake_step, made_batch
from dpo_core.contract.config import AdapterConfig
from dpo_core.contract.exchange_memory import exchange_parts
from dpo_core.contract.model_shape import ModelShape
from dpo_core.contract.step_memory import StepMemory, arithmetic_of
from dpo_core.model.adapter import add_adapter, halve_frozen
from dpo_core.model.recompute import checkpoint_layers

LLAMA = {"vocab_size": 128_256, "tie_word_embeddings": False, "num_key_value_heads": 8}
EIGHT = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, **LLAMA}
SEVENTY = {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, **LLAMA}
OLMO = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 100_278}
ALLOWED = 0.15


@pytest.mark.integration  # seconds
@pytest.mark.parametrize(
    ("make", "sizes", "how", "is_checkpointed", "pairs"),
    [
        (LlamaConfig, EIGHT, "autocast", True, 20),
        (LlamaConfig, EIGHT, "autocast", False, 2),
        (LlamaConfig, EIGHT, "bf16_weights", False, 8),
        (LlamaConfig, EIGHT, "bf16_weights", True, 16),
        (LlamaConfig, SEVENTY, "autocast", True, 16),
        (LlamaConfig, SEVENTY, "autocast", False, 2),
        (LlamaConfig, SEVENTY, "bf16_weights", True, 16),
        (LlamaConfig, SEVENTY, "bf16_weights", False, 4),
        (Olmo3Config, OLMO, "autocast", False, 4),
        (Olmo3Config, OLMO, "autocast", True, 20),
        (LlamaConfig, EIGHT, "adapter", True, 20),
        (LlamaConfig, EIGHT, "adapter", False, 4),
        (LlamaConfig, SEVENTY, "adapter", True, 4),
        (LlamaConfig, SEVENTY, "adapter", False, 2),
        (LlamaConfig, EIGHT, "bf16_adapter", True, 20),
        (LlamaConfig, EIGHT, "bf16_adapter", False, 4),
        (LlamaConfig, SEVENTY, "bf16_adapter", True, 8),
        (LlamaConfig, SEVENTY, "bf16_adapter", False, 2),
        (Olmo3Config, OLMO, "bf16_adapter", False, 4),
    ],
)
def test_estimates_are_what_a_step_holds(make, sizes, how, is_checkpointed, pairs):
    """Two layers of the model's width: more of them only add what one adds."""
    config = make(num_hidden_layers=2, max_position_embeddings=8192, **sizes)
    shape = ModelShape.of(config.to_dict())
    precision = "bf16_pure" if how.startswith("bf16") else "bf16"
    change = {"adapter": with_adapter, "bf16_adapter": with_adapter_alone}.get(how, lambda model: model)
    fake = fake_step(config, made_batch(pairs, 206, 412), precision, is_checkpointed, change)
    memory = StepMemory(shape, how, is_checkpointed, trains_all="adapter" not in how)
    assert memory.activations(fake.tokens) == pytest.approx(fake.kept, rel=ALLOWED)
    assert memory.beside_state(fake.tokens) == pytest.approx(fake.peak, rel=ALLOWED)


def test_a_process_that_computes_with_others_holds_what_a_model_of_its_heads_does():
    """A 70B model's layers between 8 processes; the residual stream is whole on each."""
    whole = ModelShape.of(LlamaConfig(num_hidden_layers=2, **SEVENTY).to_dict())
    part = SEVENTY | {
        "intermediate_size": 28672 // 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 128,
        "vocab_size": 128_256 // 8,
    }
    config = LlamaConfig(num_hidden_layers=2, max_position_embeddings=8192, **part)
    fake = fake_step(config, made_batch(16, 206, 412), "bf16_pure", True, lambda model: model)
    memory = StepMemory(whole.shared_by(8), "bf16_weights", True)
    assert memory.activations(fake.tokens) == pytest.approx(fake.kept, rel=ALLOWED)
    assert memory.beside_state(fake.tokens) == pytest.approx(fake.peak, rel=ALLOWED)


def frozen(model):
    return model.requires_grad_(False)


def frozen_in_half(model):
    with mock.patch.object(torch, "equal", return_value=True):  # see with_adapter
        halve_frozen(frozen(model))
    return model


@pytest.mark.integration  # seconds
@pytest.mark.parametrize("pairs", [2, 16])
@pytest.mark.parametrize(
    ("make", "sizes", "how", "precision", "change"),
    [
        (LlamaConfig, SEVENTY, "adapter", "bf16", frozen_in_half),
        (LlamaConfig, EIGHT, "bf16_adapter", "bf16_pure", frozen),
        (Olmo3Config, OLMO, "fp32", "fp32", frozen),
    ],
)
def test_a_forward_without_gradients_holds_what_is_estimated(make, sizes, how, precision, change, pairs):
    config = make(num_hidden_layers=2, max_position_embeddings=8192, **sizes)
    batch = made_batch(pairs, 206, 412)
    memory = StepMemory(ModelShape.of(config.to_dict()), how, False, trains_all=False)
    held = fake_scoring(config, batch, precision, change)
    assert memory.forward_alone(batch.ids_RT.numel()) == pytest.approx(held, rel=ALLOWED)


@pytest.mark.parametrize("gib", [2, 100])
def test_a_budget_of_kept_products_is_used_and_kept_to(gib):
    config = LlamaConfig(num_hidden_layers=2, max_position_embeddings=8192, **EIGHT)

    def budgeted(model):
        checkpoint_layers(model, gib << 30)
        return model

    fake = fake_step(config, made_batch(20, 206, 412), "bf16_pure", False, budgeted)
    memory = StepMemory(ModelShape.of(config.to_dict()), "bf16_weights", True, budget=gib << 30)
    assert memory.activations(fake.tokens) == pytest.approx(fake.kept, rel=ALLOWED)
    assert memory.beside_state(fake.tokens) == pytest.approx(fake.peak, rel=ALLOWED)


def with_adapter_alone(model):
    return add_adapter(model, AdapterConfig(kind="lora"), seed=0)


def with_adapter(model):
    """Weights without values have none to lose, so the embeddings are halved, too."""
    with_adapter_alone(model)
    with mock.patch.object(torch, "equal", return_value=True):
        halve_frozen(model)
    return model


@pytest.mark.parametrize(
    ("kind", "precision", "sharding", "expected"),
    [
        ("none", "bf16", "none", "autocast"),
        ("none", "bf16", "zero3", "autocast"),
        ("none", "bf16", "fsdp2", "bf16_weights"),
        ("lora", "bf16", "fsdp2", "bf16_adapter"),
        ("lora", "bf16", "zero3", "adapter"),
        ("lora", "bf16", "none", "adapter"),
        ("none", "bf16_pure", "none", "bf16_weights"),
        ("none", "fp32", "fsdp2", "fp32"),
    ],
)
def test_each_back_end_computes_with_its_own_numbers(kind, precision, sharding, expected):
    assert arithmetic_of(AdapterConfig(kind=kind), precision, sharding) == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_fsdp2_gathers_is_half_as_large_in_bf16(precision):
    """Two layers of 10 x 10 matrices, head and embedding of 7 x 10, gathered; a layer's gradient is sent in fp32."""
    shape = ModelShape(2, 10, 10, 10, 10, 7)
    parts = exchange_parts("fsdp2", shape, shape.num_parameters, shape.num_parameters, True, precision)
    each = {"fp32": 4, "bf16": 2}[precision]
    layer = 10 * (2 * 10 + 2 * 10 + 3 * 10) + 2 * 10
    assert parts == {
        "gathered weights, at most": each * (2 * 70 + 2 * layer),
        "gradients before their exchange": each * (70 + 2 * layer) + 4 * layer,
    }


@pytest.mark.parametrize("is_checkpointed", [True, False])
def test_the_tokens_that_fit_are_as_many_as_fit(is_checkpointed):
    memory = StepMemory(ModelShape(32, 4096, 14336, 4096, 1024, 128_256), "autocast", is_checkpointed)
    for gib in (40, 80):
        found = memory.tokens_within(gib << 30, 1 << 20)
        assert memory.beside_state(found) <= gib << 30 < memory.beside_state(found + 1)
    assert memory.tokens_within(1 << 20, 1 << 20) == 0


def test_a_config_tells_its_shape_or_none():
    shape = ModelShape.of(
        {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 7}
    )
    assert shape == ModelShape(2, 64, 256, 64, 64, 7)
    assert ModelShape.of({**EIGHT, "num_hidden_layers": 32}).num_parameters == pytest.approx(8.03e9, rel=1e-3)
    assert ModelShape.of({**SEVENTY, "num_hidden_layers": 80}).num_parameters == pytest.approx(
        70.55e9, rel=1e-3
    )
    for lie in ({"hidden_size": -1}, {"vocab_size": "7"}, {"num_hidden_layers": True}, {"num_experts": 8}):
        assert ModelShape.of({**EIGHT, "num_hidden_layers": 32, **lie}) is None
