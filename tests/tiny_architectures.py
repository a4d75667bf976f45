"""Tiny random models of the architectures that people train: 2 layers, made on the fly, windows shorter than the rows."""

import copy

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    BloomConfig,
    Cohere2Config,
    DeepseekV3Config,
    FalconConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    JambaConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    MptConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoeConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    RwkvConfig,
    SmolLM3Config,
    StableLmConfig,
)

WINDOW = 6
SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
SIGHT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 14,
    "patch_size": 7,
}
MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}

# Both sides of a pair fit in one row, and several pairs as well.
PACKED: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen2_sliding": Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "mistral": MistralConfig(**SIZES, sliding_window=WINDOW),
    "gemma": GemmaConfig(**SIZES, head_dim=8),
    "gemma2": Gemma2Config(
        **SIZES, **MIXED, head_dim=8, final_logit_softcapping=3.0, attn_logit_softcapping=2.0
    ),
    "gemma3": Gemma3TextConfig(**SIZES, **MIXED, head_dim=8),
    "gemma3_that_sees": Gemma3Config(  # the text's config is nested; no soft cap, which stock transformers leaves out here
        text_config={**SIZES, **MIXED, "head_dim": 8},
        vision_config=SIGHT,
        mm_tokens_per_image=4,
        image_token_index=299,
    ),
    "olmo2": Olmo2Config(**SIZES),
    "olmo3": Olmo3Config(**SIZES, **MIXED),
    "smollm3": SmolLM3Config(**SIZES, no_rope_layers=[1, 0]),
    "phi3": Phi3Config(**SIZES, sliding_window=WINDOW),
    "gpt_neox": GPTNeoXConfig(**SIZES),
    "gpt2": GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=256),
    "mixtral": MixtralConfig(**SIZES, sliding_window=WINDOW, num_local_experts=4),
    "olmoe": OlmoeConfig(**SIZES, **EXPERTS),
    "qwen2_moe": Qwen2MoeConfig(
        **SIZES, **EXPERTS, moe_intermediate_size=16, shared_expert_intermediate_size=16
    ),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, **EXPERTS, moe_intermediate_size=16, head_dim=8),
    "gpt_oss": GptOssConfig(**SIZES, **MIXED, head_dim=8, num_local_experts=4, num_experts_per_tok=2),
    "cohere2": Cohere2Config(**SIZES, **MIXED),
    "granite": GraniteConfig(**SIZES, logits_scaling=2.0),
    "deepseek_v3": DeepseekV3Config(
        **{**SIZES, "num_key_value_heads": 4},
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
    ),
}
# A pair fits in one row, but their attention cannot be called pair by pair; what the log says.
ONE_PAIR_A_ROW: dict[str, tuple[PreTrainedConfig, str]] = {
    "falcon": (
        FalconConfig(**SIZES, alibi=False, new_decoder_architecture=True),
        "needs attention that can be replaced",
    ),
    "stablelm": (
        StableLmConfig(**SIZES),
        "differs from the plain one by",
    ),  # it does not hand its arguments on
    "llama4": (
        Llama4TextConfig(
            **SIZES,
            head_dim=8,
            attention_chunk_size=WINDOW,
            num_local_experts=4,
            intermediate_size_mlp=64,
            layer_types=["chunked_attention", "full_attention"],
        ),
        "differs from the plain one by",
    ),  # chunks are known to its masks only
}
# One sequence a row; what the log says.
PADDED_ONLY: dict[str, tuple[PreTrainedConfig, str]] = {
    "mamba": (MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=4), "recurrent"),
    "mamba2": (
        Mamba2Config(
            vocab_size=300,
            hidden_size=32,
            num_hidden_layers=2,
            state_size=4,
            num_heads=4,
            head_dim=16,
            n_groups=1,
            expand=2,
        ),
        "recurrent",
    ),
    "bamba": (
        BambaConfig(**SIZES, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, attn_layer_indices=[1]),
        "recurrent",
    ),
    "jamba": (
        JambaConfig(
            **SIZES,
            num_experts=2,
            num_experts_per_tok=1,
            attn_layer_period=2,
            attn_layer_offset=1,
            use_mamba_kernels=False,
            mamba_dt_rank=4,
        ),
        "recurrent",
    ),
    "qwen3_next": (
        Qwen3NextConfig(
            **SIZES,
            **EXPERTS,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
            head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            layer_types=["linear_attention", "full_attention"],
        ),
        "recurrent",
    ),
    "rwkv": (
        RwkvConfig(
            vocab_size=300, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2, context_length=256
        ),
        "recurrent",
    ),
    "lfm2": (
        Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]),
        "conv layers take no attention mask",
    ),
    "bloom": (BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4, pad_token_id=0), "ALiBi"),
    "falcon_alibi": (FalconConfig(**SIZES, alibi=True), "ALiBi"),
    "mpt": (MptConfig(vocab_size=300, d_model=32, n_layers=2, n_heads=4, max_seq_len=256), "ALiBi"),
}


def tiny(config: PreTrainedConfig, seed: int = 0, kernel: str | None = None) -> PreTrainedModel:
    """A random model. Weights are large enough that a wrong mask moves log-probabilities by far more than rounding."""
    torch.manual_seed(seed)
    config = copy.deepcopy(config)  # it keeps the model's kernel
    model = AutoModelForCausalLM.from_config(
        config, **({"attn_implementation": kernel} if kernel else {})
    ).eval()
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=1.0 if "embed" in name or "wte" in name else 0.15)
    return model
