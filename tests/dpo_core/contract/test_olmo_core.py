"""Which models OLMo-core is used for, and where the choice of it is content."""

import pytest

from dpo_core.contract.config import TrainConfig
from dpo_core.contract.errors import ConfigError
from dpo_core.contract.olmo_core import MODELS, check_olmo_core, why_not_olmo_core
from dpo_core.contract.section import content_of


def test_in_fp32_the_choice_changes_nothing_and_in_bf16_it_is_content():
    def content(**settings: str) -> dict:
        return content_of(TrainConfig(**settings))

    assert content() == content(implementation="olmo_core")
    assert content(precision="bf16") | {"implementation": "olmo_core"} == content(
        precision="bf16", implementation="olmo_core"
    )
    assert "implementation" not in content(precision="bf16")  # fingerprints of before stay


@pytest.mark.parametrize("kind", MODELS)
def test_supported_models_are_taken(kind):
    assert why_not_olmo_core({"model_type": kind, "hidden_act": "silu", "rope_scaling": None}) is None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "mistral"}, "its kind of model is mistral"),
        ({}, "its kind of model is None"),
        ({"model_type": "llama", "mlp_bias": True}, "its mlp_bias is True"),
        ({"model_type": "llama", "hidden_act": "gelu"}, "its activation is gelu"),
        ({"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "scaled by dynamic"),
        ({"model_type": "qwen3", "rope_parameters": {"partial_rotary_factor": 0.5}}, "rotates 0.5 of a head"),
        ({"model_type": "llama", "partial_rotary_factor": 0.5}, "rotates 0.5 of a head"),
        (
            {
                "model_type": "llama",
                "rope_scaling": {"type": "dynamic"},
                "rope_parameters": {"rope_theta": 1e4},
            },
            "scaled by dynamic",
        ),
        ({"model_type": "olmo3", "layer_types": ["chunked_attention"]}, "has layers of chunked_attention"),
        (
            {"model_type": "olmo3", "layer_types": ["sliding_attention"], "sliding_window": None},
            "and no window",
        ),
        ({"model_type": "qwen3", "layer_types": ["sliding_attention"], "sliding_window": 8}, "and no window"),
        (
            {
                "model_type": "olmo3",
                "rope_parameters": {"full_attention": {"rope_type": "yarn", "truncate": False}},
            },
            "its YaRN sets truncate",
        ),
        (
            {"model_type": "qwen3", "rope_scaling": {"type": "yarn", "factor": 8.0, "attention_factor": 1.0}},
            "its YaRN sets attention_factor",
        ),
    ],
)
def test_others_are_refused_with_the_reason_and_the_list(config, reason):
    with pytest.raises(ConfigError, match=f"cannot train org/model: .*{reason}") as raised:
        check_olmo_core(config, "org/model")
    assert "OLMo 2, OLMo 3, Llama, Qwen 3" in str(raised.value)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 8},
        {"model_type": "olmo3", "sliding_window": 8},
        {"model_type": "olmo3"},
        # As the file of OLMo 3 has it.
        {
            "model_type": "olmo3",
            "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.2079441541679836},
        },
    ],
)
def test_layers_with_windows_are_taken(config):
    assert why_not_olmo_core(config | {"layer_types": ["sliding_attention", "full_attention"]}) is None


def test_a_model_with_code_of_its_own_is_refused_where_that_would_be_run():
    own = {"model_type": "llama", "auto_map": {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}}
    assert why_not_olmo_core(own) is None  # transformers computes it as a Llama, too
    with pytest.raises(ConfigError, match="computed by code of its own"):
        check_olmo_core(own, "org/model", runs_own_code=True)
    assert why_not_olmo_core({"model_type": "llama"}, runs_own_code=True) is None
