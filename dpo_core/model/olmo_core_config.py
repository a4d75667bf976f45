"""A model's config.json -> OLMo-core's configuration of the same model, and the proof that they are the same.

OLMo-core has no such way of its own, and what is left out trains silently wrong: without YaRN logits were off by 0.8. So a
copy of the model that is small in all that does not matter (hidden size, vocabulary, layers) is made by both, with the same
random weights, and asked for the same logits, whenever a model is built. Imported where a run asks for it alone.
"""

import copy

import torch
from olmo_core.nn.attention import AttentionBackendName, AttentionConfig, SlidingWindowAttentionConfig
from olmo_core.nn.feed_forward import FeedForwardConfig
from olmo_core.nn.hf import convert_state_from_hf
from olmo_core.nn.layer_norm import LayerNormType
from olmo_core.nn.rope import (
    PIRoPEScalingConfig,
    RoPEConfig,
    StepwiseRoPEScalingConfig,
    YaRNRoPEScalingConfig,
)
from olmo_core.nn.transformer import TransformerBlockType, TransformerConfig
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from dpo_core.contract.errors import CheckpointError
from dpo_core.contract.olmo_core import MODELS, check_olmo_core

REORDERED = ("olmo2", "olmo3")  # their norms stand behind attention and MLP
SMALL_HEADS, SMALL_TOKENS, SMALL_WINDOW, SMALL_VOCABULARY = 2, 24, 5, 64
SAME_LOGITS = 1e-4  # of logits of about 3: fp32 sums in another order give 3e-6


def layer_kinds(config: PreTrainedConfig) -> list[str]:
    """Return each layer's kind: full_attention or sliding_attention."""
    return list(getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers)


def transformer_config(config: PreTrainedConfig) -> TransformerConfig:
    """Return OLMo-core's configuration of the model. Raises ``ConfigError`` for what it cannot express."""
    check_olmo_core(config.to_dict(), MODELS.get(config.model_type, "this model"))
    kinds = layer_kinds(config)
    windows = [config.sliding_window if kind == "sliding_attention" else -1 for kind in kinds]
    built = TransformerConfig.llama_like(
        d_model=config.hidden_size,
        vocab_size=config.vocab_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None),
        qk_norm=config.model_type != "llama",
        use_head_qk_norm=config.model_type == "qwen3",
        layer_norm_eps=config.rms_norm_eps,
        # How transformers rounds in bf16: the last product of OLMo's norms is one of fp32.
        layer_norm_name=LayerNormType.rms if config.model_type in REORDERED else LayerNormType.qwen_rms,
        sliding_window=None
        if set(windows) == {-1}
        else SlidingWindowAttentionConfig(
            pattern=windows,
            force_full_attention_on_first_layer=False,
            force_full_attention_on_last_layer=False,
        ),
        attn_backend=AttentionBackendName.torch,
        block_name=TransformerBlockType.reordered_norm
        if config.model_type in REORDERED
        else TransformerBlockType.default,
        feed_forward=FeedForwardConfig(hidden_size=config.intermediate_size, bias=False),
        tie_word_embeddings=config.tie_word_embeddings,
    )
    built.block_overrides = {}
    for number, kind in enumerate(kinds):
        block = copy.deepcopy(built.block)
        assert isinstance(block.sequence_mixer, AttentionConfig)
        block.sequence_mixer.rope = _rope(config, kind)
        built.block_overrides[number] = block
    return built


def _rope(config: PreTrainedConfig, kind: str) -> RoPEConfig:
    """The rotary embedding of a kind of layer."""
    stated = config.rope_parameters.get(kind, config.rope_parameters)
    scaling = None
    match stated.get("rope_type", "default"):
        case "linear":
            scaling = PIRoPEScalingConfig(factor=stated["factor"])
        case "llama3":
            scaling = StepwiseRoPEScalingConfig(
                factor=stated["factor"],
                low_freq_proportion=1 - 1 / stated["low_freq_factor"],
                high_freq_proportion=1 / stated["high_freq_factor"],
                old_context_len=stated["original_max_position_embeddings"],
            )
        case "yarn":
            scaling = YaRNRoPEScalingConfig(
                factor=stated["factor"],
                beta_fast=stated.get("beta_fast") or 32,
                beta_slow=stated.get("beta_slow") or 1,
                old_context_len=stated.get("original_max_position_embeddings")
                or config.max_position_embeddings,
            )
    return RoPEConfig(theta=stated["rope_theta"], scaling=scaling)


def prove_translation(config: PreTrainedConfig) -> float:
    """Compare a small model of this configuration as both make it. -> the largest difference of two logits. Raises
    ``CheckpointError`` if they are not the same model."""
    small = _small(config)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        stock = AutoModelForCausalLM.from_config(
            small, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        for parameter in stock.parameters():
            nn.init.normal_(
                parameter, mean=float(parameter.dim() == 1), std=0.3 if parameter.dim() == 1 else 0.08
            )
        other = transformer_config(small).build(init_device="cpu").eval()
        other.load_state_dict(convert_state_from_hf(small, stock.state_dict(), model_type=small.model_type))
        ids_1T = torch.randint(SMALL_VOCABULARY, (1, SMALL_TOKENS))
        difference = float((stock(ids_1T).logits - other(ids_1T)).abs().max())
    if not difference <= SAME_LOGITS:
        raise CheckpointError(
            f"OLMo-core's {MODELS[config.model_type]} is not the model that config.json describes: logits of a small one "
            f"differ by {difference:.1e}.",
            "Set train.implementation to transformers.",
        )
    return difference


def _small(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration with one layer of each kind, a short window and few small matrices."""
    small, kinds = copy.deepcopy(config), sorted(set(layer_kinds(config)))
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    grouped = config.num_key_value_heads < config.num_attention_heads
    small.hidden_size, small.intermediate_size = SMALL_HEADS * head, 2 * SMALL_HEADS * head
    small.num_attention_heads, small.num_key_value_heads = SMALL_HEADS, 1 if grouped else SMALL_HEADS
    small.vocab_size, small.pad_token_id = SMALL_VOCABULARY, None
    small.num_hidden_layers = len(kinds)
    if getattr(config, "layer_types", None):
        small.layer_types = kinds
    if "sliding_attention" in kinds:
        small.sliding_window = SMALL_WINDOW
    return small
