"""Whether a checkpoint's files hold the language model that its config.json describes, all of it and nothing else.

transformers makes up what is missing, passes by what is left, and parts what its config ties, with a warning at most. Shapes
and names are looked at on PyTorch's meta device; of values only matrices that are held twice are read.
"""

import json
import logging
import re

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from dpo_core.contract.checkpoint_files import CONFIG
from dpo_core.contract.errors import CheckpointError
from dpo_core.contract.refs import CheckpointRef
from dpo_core.model.load import WITHOUT_MEMORY, check_complete, read_config, with_loading_info
from dpo_core.model.tied_weights import check_tied

log = logging.getLogger(__name__)

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # of a layer, of an expert
OTHER_HEADS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)
REWARD = "RewardModel"  # somewhere in the name of a class of such
# What older versions of libraries saved beside the weights of a layer, and the scales of a cache in 8 bits: no weights.
NO_WEIGHTS = (
    "rotary_emb.inv_freq",
    ".attn.bias",
    ".attention.bias",
    ".masked_bias",
    ".cos_cached",
    ".sin_cached",
    *(f".{one}_scale" for one in ("k", "v", "q", "input", "output", "kv", "prob")),
)


def model_of_all_weights(checkpoint: CheckpointRef, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model on the device ``meta``. Raises ``CheckpointError`` where files and config.json do not fit."""
    _check_class(checkpoint)
    config = _checked_config(checkpoint)
    try:
        model, info = with_loading_info(
            checkpoint.path,
            config=config,
            dtype=dtype,
            device_map=WITHOUT_MEMORY,
            trust_remote_code=checkpoint.allow_remote_code,
            local_files_only=True,
            ignore_mismatched_sizes=True,
        )
    except CheckpointError:
        raise
    except Exception as error:  # transformers raises nearly anything for files that do not fit together
        raise CheckpointError(
            f"{checkpoint.source} cannot be loaded as a causal language model: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:600]}. Use a checkpoint that AutoModelForCausalLM.from_pretrained loads, or "
            "correct its config.json."
        ) from error
    check_complete(checkpoint.source, info["missing_keys"], info["unexpected_keys"])
    if wrong := sorted(str(one[0] if isinstance(one, tuple) else one) for one in info["mismatched_keys"]):
        raise CheckpointError(
            f"{checkpoint.source} has weights of another shape than its config.json says: {', '.join(wrong[:5])}. "
            "Config and weights are of different checkpoints; fetch it again."
        )
    _check_left_behind(sorted(map(str, info["unexpected_keys"])), model, checkpoint.source)
    check_tied(model, checkpoint.path, checkpoint.source)
    return model


def _checked_config(checkpoint: CheckpointRef) -> PreTrainedConfig:
    """Return the config. Raises ``CheckpointError`` for one that transformers does not read, or no model can be made of."""
    try:
        config = read_config(checkpoint)
    except Exception as error:  # of a value of a wrong type, nearly anything
        raise CheckpointError(
            f"config.json of {checkpoint.source} is none that transformers can read: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:600]}. Correct it, or use a version of this checkpoint that stock "
            "transformers knows."
        ) from error
    rows, pad = (getattr(config.get_text_config(), name, None) for name in ("vocab_size", "pad_token_id"))
    if type(rows) is int and type(pad) is int and not -rows <= pad < rows:  # from the end, as PyTorch counts
        raise CheckpointError(
            f"config.json of {checkpoint.source} has pad_token_id {pad}, and vocab_size {rows}: the model has no such row. "
            "Correct pad_token_id (null will do), or resize the embedding where the token is added."
        )
    return config


def _check_class(checkpoint: CheckpointRef) -> None:
    """Raise ``CheckpointError`` for a classifier or a reward model, whose head would be left behind for a random one or the
    embedding."""
    named = json.loads((checkpoint.path / CONFIG).read_bytes()).get("architectures")
    classes = [str(one) for one in (named if isinstance(named, list) else [named])]
    if other := [one for one in classes if one.endswith(OTHER_HEADS) or REWARD in one]:
        raise CheckpointError(
            f"config.json of {checkpoint.source} names {other[0]}, which is no language model. Use the SFT checkpoint "
            "that it was made from; if the weights are those of a language model, correct `architectures`."
        )


def _check_left_behind(names: list[str], model: PreTrainedModel, source: str) -> None:
    """Raise ``CheckpointError`` if files hold, beside all that the model has, something of its layers: one more, an expert,
    a bias, a norm, an adapter. Loaders pass them by, and what is trained would be another model. What else there is (a value
    head, a tower that sees) is logged."""
    layers = {_layer_of(name) for name in model.state_dict()} - {""}
    of_layers = [name for name in names if _layer_of(name) in layers and not name.endswith(NO_WEIGHTS)]
    if wrong := [name for name in names if ".lora_" in name] or of_layers:
        raise CheckpointError(
            f"{source} holds weights for which its config.json has no place, and they would be left out without a word: "
            f"{', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}. Use the config.json that belongs to these weights "
            "(model_type, num_hidden_layers, num_experts, attention_bias), or merge the adapter into them (peft: "
            "merge_and_unload, save_pretrained)."
        )
    if names:
        log.warning(
            "%s: left behind, as the model has no place for them: %s%s",
            source,
            ", ".join(names[:5]),
            " ..." if len(names) > 5 else "",
        )


def _layer_of(name: str) -> str:
    """What stands before the first number of a tensor's name: where the layer lies that it is of."""
    found = NUMBER.search(name)
    return name[: found.start()] if found else ""
