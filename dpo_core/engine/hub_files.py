"""A model's weights as Hugging Face files, written tensor by tensor: the files that ``save_pretrained`` writes.

Names, cut, order and index are transformers' own, found with tensors that have no values. A file is written by a thread of
its own and holds one tensor in memory at a time; of an architecture whose files hold other tensors than the model (experts
one by one), what is converted together: one tensor, or one layer.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from dpo_core.contract.store import write_bytes
from dpo_core.engine.tensor_file import HeaderEntry, write_tensors
from dpo_core.model.trained_weights import TrainedWeights

FILE_BYTES = 50 * 10**9  # as save_pretrained cuts
MOST_THREADS = 4  # each holds a tensor
ROWS_SEED = 0
NAME_PATTERN = "model{suffix}.safetensors"
_LAYER = re.compile(r".*?\.\d+(?=\.)")


def write_weights(model: PreTrainedModel, weights: TrainedWeights, folder: Path) -> dict[str, str]:
    """Write the weights of a model without values, and their index if they are several files. -> sha256 per file

    Rows that the model has and the weights have not, of an embedding that was grown, are drawn.
    """
    form = _SavedForm.of(model)
    cut = split_state_dict_into_shards_factory(
        cast(dict, form.saved),
        get_storage_size=lambda tensor: tensor.untyped_storage().nbytes(),
        get_storage_id=lambda tensor: tensor.untyped_storage()._cdata,  # pieces of one tensor stay together
        filename_pattern=NAME_PATTERN,
        max_shard_size=FILE_BYTES,
    )
    write = partial(_write_file, model, weights, form, folder)
    with ThreadPoolExecutor(min(MOST_THREADS, len(cut.filename_to_tensors))) as threads:
        hashes = dict(
            zip(
                cut.filename_to_tensors,
                threads.map(write, cut.filename_to_tensors, cut.filename_to_tensors.values()),
                strict=True,
            )
        )
    if cut.is_sharded:
        index = {
            "metadata": {"total_parameters": model.num_parameters(), **cut.metadata},
            "weight_map": cut.tensor_to_filename,
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        write_bytes(folder / SAFE_WEIGHTS_INDEX_NAME, text.encode())
    return hashes


@dataclass(frozen=True, slots=True)
class _SavedForm:
    """What the files hold of a model, and of which of its own tensors each is made."""

    own: Mapping[str, Tensor]  # of the model, without values, tied ones once
    saved: Mapping[str, Tensor]  # of the files, without values, in their order
    made_of: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, model: PreTrainedModel) -> "_SavedForm":
        own = dict(model.state_dict())
        for name in model._keys_to_ignore_on_save or ():
            own.pop(name, None)
        own = remove_tied_weights_from_state_dict(own, model)
        saved = revert_weight_conversion(model, dict(own))
        for parts in (((name,) for name in own), _by_layer(own), (tuple(own),)):
            made_of: dict[str, tuple[str, ...]] = {}
            shapes: dict[str, torch.Size] = {}
            for names in parts:
                made = revert_weight_conversion(model, {name: own[name] for name in names})
                made_of |= dict.fromkeys(made, names)
                shapes |= {name: tensor.shape for name, tensor in made.items()}
            if shapes == {name: tensor.shape for name, tensor in saved.items()}:
                break
        return cls(own, saved, made_of)


def _by_layer(names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    layers: dict[str, list[str]] = {}
    for name in names:
        layer = _LAYER.match(name)
        layers.setdefault(layer[0] if layer else name, []).append(name)
    yield from map(tuple, layers.values())


def _write_file(
    model: PreTrainedModel,
    weights: TrainedWeights,
    form: _SavedForm,
    folder: Path,
    file: str,
    names: Sequence[str],
) -> str:
    """-> sha256"""
    entries = {name: HeaderEntry(tuple(form.saved[name].shape), form.saved[name].dtype) for name in names}
    values = _OfFile(model, partial(_grown, model, weights), form, frozenset(names))
    return write_tensors(folder / file, entries, values.take, {"format": "pt"})


@dataclass(slots=True)
class _OfFile:
    """Tensors of one file, each asked for once."""

    model: PreTrainedModel
    read: Callable[[str, Tensor], Tensor]
    form: _SavedForm
    wanted: frozenset[str]
    ready: dict[str, Tensor] = field(default_factory=dict)

    def take(self, name: str) -> Tensor:
        if name not in self.ready:
            own = {part: self.read(part, self.form.own[part]) for part in self.form.made_of[name]}
            made = revert_weight_conversion(self.model, own)
            self.ready |= {other: made[other] for other in made if other in self.wanted}
        return self.ready.pop(name)


@torch.no_grad()
def _grown(model: PreTrainedModel, weights: TrainedWeights, name: str, like: Tensor) -> Tensor:
    """The values of a tensor, in the type and with the rows of ``like``."""
    values = weights.read(name, like.dtype)
    if values.shape == like.shape:
        return values
    larger = torch.zeros(like.shape, dtype=values.dtype)
    larger[: len(values)] = values
    if like.dim() > 1:
        std = getattr(model.config.get_text_config(), "initializer_range", 0.02)
        larger[len(values) :].normal_(0, std, generator=torch.Generator().manual_seed(ROWS_SEED))
    return larger
