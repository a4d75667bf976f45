"""Weights that are still in a checkpoint's files, for back ends of which every rank reads its own part.

The model stands as memory that nothing was written to, which takes none; the back end shares it out and has each rank's
part filled from the files. Where the files hold other tensors than the model, and these do not lie in it one behind the
other, as experts do, there is no such way: rank 0 reads, and the others get their part from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping

from dpo_core.contract.checkpoint_files import RUN_WEIGHTS, files_of
from dpo_core.contract.errors import StoreError
from dpo_core.model.stacked_weights import stacked_in
from dpo_core.model.tensor_slices import Columns, Slices, TensorSlices

ATTRIBUTE = "_pairline_unread"
ADAPTED = ".base_layer"  # what peft puts into the name of a layer's own weight beside an adapter


@dataclass(frozen=True, slots=True)
class UnreadWeights:
    """Open files, and under which name they hold each parameter and persistent buffer of the model (tied: all names)."""

    slices: TensorSlices
    keys: Mapping[str, str]

    def fill(self, name: str, target: Tensor, start: int = 0, columns: Columns | None = None) -> bool:
        """Read the values of a tensor of the model from ``start`` on into ``target``, of rows some ``columns`` alone. ->
        whether the files hold it"""
        key = self.keys.get(name.replace(ADAPTED, ""))
        if key is not None:
            self.slices.fill(key, target, start, columns)
        return key is not None


def leave_unread(model: PreTrainedModel, folder: Path) -> bool:
    """Keep where the weights of a model that were not read lie. -> whether its files hold them as they are in memory, or in
    pieces of it"""
    unread = weights_in(folder, model, is_converted(model))
    if unread:
        setattr(model, ATTRIBUTE, unread)
    return unread is not None


def weights_in(folder: Path, model: PreTrainedModel, converted: bool = False) -> UnreadWeights | None:
    """Return where a folder's files hold the tensors of a model, whose values are not looked at; None if they do not.
    ``converted``: the files are those of which transformers makes the model's tensors when it reads them."""
    try:
        slices = TensorSlices(files_of(folder, RUN_WEIGHTS))
    except StoreError:
        return None
    if converted:
        slices.tensors = stacked_in(slices.tensors, model) or {}
    keys = _keys(model, slices.tensors)
    if keys is None:
        slices.close()
        return None
    return UnreadWeights(slices, keys)


def is_converted(model: PreTrainedModel) -> bool:
    """Tell whether transformers turns a checkpoint's tensors into others when it reads them for such a model."""
    return bool(get_model_conversion_mapping(model, add_legacy=False))


def take_unread(model: PreTrainedModel) -> UnreadWeights | None:
    """Return what ``leave_unread`` remembered, for the one who reads it; the model forgets it."""
    unread = getattr(model, ATTRIBUTE, None)
    if unread:
        delattr(model, ATTRIBUTE)
    return unread


def _keys(model: PreTrainedModel, stored: Mapping[str, Slices]) -> dict[str, str] | None:
    """Tensor of the model -> its name in the files; None if one is missing there or has another shape."""
    persistent = model.state_dict(keep_vars=True)
    names: dict[int, list[str]] = {}
    for name, tensor in persistent.items():
        names.setdefault(id(tensor), []).append(name)
    keys = {}
    for name, tensor in persistent.items():
        key = next(
            (other for other in names[id(tensor)] if other in stored), None
        )  # tied ones have several names
        if key is None or stored[key].shape != tuple(tensor.shape):
            return None
        keys[name] = key
    return keys
