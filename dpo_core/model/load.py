"""Checkpoint folder -> model on a device, ready to be scored or trained."""

import logging

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from dpo_core.config import AdapterConfig, BaseWeights, OptimConfig
from dpo_core.cuda8bit import check_cuda8bit
from dpo_core.errors import CheckpointError
from dpo_core.jobs import CheckpointRef

log = logging.getLogger(__name__)


def _disable_dropout(model: nn.Module) -> None:
    """Policy and reference must agree on the same input, so no layer may be random (as in every DPO trainer)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def _in_four_bits(device: torch.device | str) -> dict:
    """QLoRA's settings: normal-float 4 bits, the scales quantised as well, matrix products in bf16."""
    check_cuda8bit(AdapterConfig(kind="qlora"), OptimConfig(), torch.cuda.device_count())
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                             bnb_4bit_compute_dtype=torch.bfloat16)
    return {"quantization_config": nf4, "device_map": {"": device}}


def load_model(checkpoint: CheckpointRef, device: torch.device | str = "cpu",
               dtype: torch.dtype = torch.float32, base_weights: BaseWeights = "full") -> PreTrainedModel:
    """Load a causal language model with its weights in ``dtype``, in eval mode, without dropout.

    ``nf4`` keeps the linear layers in 4 bits (QLoRA, arXiv 2305.14314) and needs bitsandbytes; never run on a GPU.
    Raises ``CheckpointError`` if transformers cannot build it or weights are missing from the files.
    """
    quantised = _in_four_bits(device) if base_weights == "nf4" else {}
    try:
        config = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=checkpoint.allow_remote_code)
        for name in ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop",
                     "router_jitter_noise"):
            if getattr(config, name, 0):
                setattr(config, name, 0.0)
        model, loading = AutoModelForCausalLM.from_pretrained(
            checkpoint.path, config=config, dtype=dtype, output_loading_info=True,
            trust_remote_code=checkpoint.allow_remote_code, local_files_only=True, **quantised)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint.source} at {checkpoint.path} cannot be loaded as a causal language model: "
                              f"{error}") from error
    if missing := sorted(loading["missing_keys"]):
        raise CheckpointError(f"{checkpoint.source} lacks weights that its config.json calls for: {', '.join(missing[:5])}"
                              f"{' ...' if len(missing) > 5 else ''}. They would be random; use a complete checkpoint.")
    _disable_dropout(model)
    model.config.use_cache = False
    return model.eval() if quantised else model.to(device).eval()


def load_in_full(checkpoint: CheckpointRef, base_weights: BaseWeights, device: torch.device | str) -> PreTrainedModel:
    """The model in float32 with the values that ``base_weights`` can hold: what an adapter was trained on."""
    model = load_model(checkpoint, device, base_weights=base_weights)
    return model.dequantize().float() if base_weights == "nf4" else model
