"""Checkpoint folder -> model on a device, ready to be scored or trained."""

import logging

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from dpo_core.errors import CheckpointError
from dpo_core.jobs import CheckpointRef

log = logging.getLogger(__name__)


def _disable_dropout(model: nn.Module) -> None:
    """Policy and reference must agree on the same input, so no layer may be random (as in every DPO trainer)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def load_model(checkpoint: CheckpointRef, device: torch.device | str = "cpu",
               dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a causal language model with its weights in ``dtype``, in eval mode, without dropout.

    Raises ``CheckpointError`` if transformers cannot build it or weights are missing from the files.
    """
    try:
        config = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=checkpoint.allow_remote_code)
        for name in ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"):
            if getattr(config, name, 0):
                setattr(config, name, 0.0)
        model, loading = AutoModelForCausalLM.from_pretrained(
            checkpoint.path, config=config, dtype=dtype, output_loading_info=True,
            trust_remote_code=checkpoint.allow_remote_code, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint.source} at {checkpoint.path} cannot be loaded as a causal language model: "
                              f"{error}") from error
    if missing := sorted(loading["missing_keys"]):
        raise CheckpointError(f"{checkpoint.source} lacks weights that its config.json calls for: {', '.join(missing[:5])}"
                              f"{' ...' if len(missing) > 5 else ''}. They would be random; use a complete checkpoint.")
    _disable_dropout(model)
    model.config.use_cache = False
    return model.to(device).eval()
