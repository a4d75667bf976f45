"""Whether a checkpoint's files hold the language model that its config.json describes, all of it and nothing else.

transformers makes up what is missing, passes by what is left, and parts what its config ties, with a warning at most. Shapes
and names are looked at on PyTorch's meta device; of values only matrices that are held twice are read.
"""

import json
import logging
import re

import torch
from transformers import PreTrainedModel

from dpo_core.contract.checkpoint_files import CONFIG
from dpo_core.contract.errors import CheckpointError
from dpo_core.contract.refs import CheckpointRef
from dpo_core.model.load import WITHOUT_MEMORY, check_complete, with_loading_info
from dpo_core.model.tied_weights import check_tied

log = logging.getLogger(__name__)

NUMBER = re.compile(r"\d+")  # of a layer, of an expert
OTHER_HEADS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)


def model_of_all_weights(checkpoint: CheckpointRef, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model on the device ``meta``. Raises ``CheckpointError`` where files and config.json do not fit."""
    _check_class(checkpoint)
    try:
        model, info = with_loading_info(
            checkpoint.path,
            dtype=dtype,
            device_map=WITHOUT_MEMORY,
            trust_remote_code=checkpoint.allow_remote_code,
            local_files_only=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # transformers raises nearly anything for files that do not fit together
        raise CheckpointError(
            f"{checkpoint.source} cannot be loaded as a causal language model: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:600]}"
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


def _check_class(checkpoint: CheckpointRef) -> None:
    """Raise ``CheckpointError`` for a classifier or a reward model, whose head would be left behind for a random one or the
    embedding."""
    named = json.loads((checkpoint.path / CONFIG).read_bytes()).get("architectures")
    if other := [str(one) for one in named or () if str(one).endswith(OTHER_HEADS)]:
        raise CheckpointError(
            f"config.json of {checkpoint.source} names {other[0]}, which is no language model. Use the SFT checkpoint "
            "that it was made from; if the weights are those of a language model, correct `architectures`."
        )


def _check_left_behind(names: list[str], model: PreTrainedModel, source: str) -> None:
    """Raise ``CheckpointError`` if files hold, beside all that the model has, a layer more, an expert, or an adapter, which
    loaders pass by: what is trained would be another model. What else there is (a value head) is logged."""
    known = {NUMBER.sub("N", name) for name in model.state_dict()}
    numbered = [name for name in names if NUMBER.search(name)]
    if wrong := [name for name in numbered if ".lora_" in name or NUMBER.sub("N", name) in known]:
        raise CheckpointError(
            f"{source} holds weights for which its config.json has no place, and they would be left out without a word: "
            f"{', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}. Use the config.json that belongs to these weights "
            "(num_hidden_layers, num_experts), or merge the adapter into them (peft: merge_and_unload, save_pretrained)."
        )
    if names:
        log.warning(
            "%s: left behind, as the model has no place for them: %s%s",
            source,
            ", ".join(names[:5]),
            " ..." if len(names) > 5 else "",
        )
