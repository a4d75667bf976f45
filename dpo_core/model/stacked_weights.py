"""Tensors of which transformers makes one of the model's by putting them one behind the other: a layer's experts.

Where each of them lies in it, transformers' own way back says, run with tensors without values: what it gives for a file is
a view of the model's tensor, whose place in memory is the place of the values.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    revert_weight_conversion,
)
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from dpo_core.contract.errors import StoreError
from dpo_core.model.tensor_slices import Slices, check_whole

STACKING = (MergeModulelist, Concatenate)  # what moves no value within a file's tensor


class _NothingIsCopied(TorchDispatchMode):
    """Copies of tensors are these tensors, so that they still tell where their values lie."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        return args[0] if func is torch.ops.aten.clone.default else func(*args, **(kwargs or {}))


def stacked_in(stored: Mapping[str, Slices], model: PreTrainedModel) -> dict[str, Slices] | None:
    """Return where files that hold ``stored`` hold the tensors of a model, tied ones once; None if not all of them are there
    or not one behind the other. No values are looked at."""
    converters = [
        one
        for one in get_model_conversion_mapping(model, add_legacy=False)
        if isinstance(one, WeightConverter)
    ]
    if not all(isinstance(step, STACKING) for one in converters for step in one.operations):
        return None
    state = dict(model.state_dict())
    for name in model._keys_to_ignore_on_save or ():
        state.pop(name, None)
    own = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in remove_tied_weights_from_state_dict(state, model).items()
    }
    with _NothingIsCopied():
        in_files = revert_weight_conversion(model, dict(own))
    of_memory = {_memory(tensor): name for name, tensor in own.items()}
    found: dict[str, Slices] = {}
    for name, view in in_files.items():
        place, there = of_memory.get(_memory(view)), stored.get(name)
        if place is None or there is None or not view.is_contiguous() or there.shape != tuple(view.shape):
            return None
        slices = found.setdefault(place, Slices(there.dtype, tuple(own[place].shape)))
        if slices.dtype != there.dtype or there.lies_in_columns:
            return None
        first = view.storage_offset()
        slices.pieces += [
            replace(piece, start=first + piece.start, stop=first + piece.stop) for piece in there.pieces
        ]
    try:
        for name in own:
            check_whole(name, found[name])
    except (KeyError, StoreError):
        return None
    return found


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
