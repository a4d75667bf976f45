"""Which models can be shared out by their heads, and by what words of transformers' plans."""

import pytest
from transformers import AutoConfig, Olmo2Config

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.tensor_parallel import MODELS, check_tensor_degree, parts_of_plan, why_not_tensor

EIGHT_HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 48}


@pytest.mark.parametrize("kind", MODELS)
def test_the_models_that_are_said_to_work_have_a_plan_that_is_known(kind):
    assert why_not_tensor({"model_type": kind, **EIGHT_HEADS}, 4) is None
    parts = parts_of_plan(AutoConfig.for_model(kind).base_model_tp_plan)
    names = {name.rpartition(".")[2]: part for name, part in parts.items()}
    assert {name for name, part in names.items() if part == "inputs"} == {"o_proj", "down_proj"}
    assert {name for name, part in names.items() if part == "outputs"} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "gate_proj",
        "up_proj",
    }


@pytest.mark.parametrize(
    ("config", "degree", "reason"),
    [
        ({"model_type": "gemma3_text", **EIGHT_HEADS}, 2, "its kind of model is gemma3_text"),
        ({}, 2, "its kind of model is None"),
        ({"model_type": "llama", **EIGHT_HEADS}, 8, "its num_key_value_heads is 4"),
        (
            {"model_type": "llama", **EIGHT_HEADS, "num_key_value_heads": None},
            16,
            "its num_attention_heads is 8",
        ),
        ({"model_type": "llama", **EIGHT_HEADS, "intermediate_size": 50}, 4, "its intermediate_size is 50"),
        ({"model_type": "llama", **EIGHT_HEADS, "attention_bias": True}, 2, "its attention_bias is True"),
    ],
)
def test_others_are_refused_with_the_reason_and_the_list(config, degree, reason):
    with pytest.raises(
        ConfigError, match=f"tensor_degree {degree} does not go with org/model: {reason}"
    ) as raised:
        check_tensor_degree(config, "org/model", degree)
    assert "Llama, Mistral, Qwen 2, Qwen 3, OLMo 2, OLMo 3" in str(raised.value)
    check_tensor_degree(config, "org/model", 1)


def test_a_vocabulary_need_not_be_divisible():
    check_tensor_degree(Olmo2Config(vocab_size=100_279, num_attention_heads=8).to_dict(), "org/model", 8)


def test_a_word_that_is_not_known_is_no_guess():
    with pytest.raises(
        ConfigError, match=r"layers.\*.mlp.experts out, which transformers calls moe_tp_experts"
    ):
        parts_of_plan({"layers.*.mlp.experts": "moe_tp_experts"})
