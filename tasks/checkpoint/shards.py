"""Whether safetensors files hold what their index promises, under names that every reader finds them by. Torch-free."""

import re
from pathlib import Path
from typing import Any

from dpo_core.contract.checkpoint_files import CONFIG
from dpo_core.contract.errors import CheckpointError
from tasks.checkpoint.own_files import read_json_file
from tasks.checkpoint.quantised import check_full_weights
from tasks.checkpoint.safetensors_header import read_header

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-(?P<number>\d{1,9})-of-(?P<of>\d{1,9})\.safetensors")
OF_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def check_safetensors(folder: Path, names: tuple[str, ...]) -> None:
    """Raise ``CheckpointError`` for a cut or foreign safetensors file, a missing shard, or a tensor not in its shard."""
    tensors = {name: read_header(folder / name) for name in names}
    every = {name: entry for held in tensors.values() for name, entry in held.items()}
    check_full_weights(folder, str(folder), every)
    if every:
        _check_layers(folder, len(every))
    if not (folder / WEIGHTS_INDEX).is_file():
        _check_one_file(folder, names)
        return
    index = read_json_file(folder / WEIGHTS_INDEX)
    weight_map = index.get("weight_map", {})
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(shard, str) for shard in weight_map.values())
    ):
        raise CheckpointError(
            f"{folder / WEIGHTS_INDEX} holds no weight_map from tensors to files. Fetch the checkpoint again."
        )
    _check_index(folder, index, weight_map)
    shards = sorted(set(weight_map.values()))
    if missing := [shard for shard in shards if shard not in tensors]:
        raise CheckpointError(
            f"{folder / WEIGHTS_INDEX} names {len(shards)} weight files, of which {', '.join(missing[:8])} "
            "are missing. Fetch the checkpoint again."
        )
    lost = [f"{tensor} (in {shard})" for tensor, shard in weight_map.items() if tensor not in tensors[shard]]
    if lost:
        raise CheckpointError(
            f"{folder / WEIGHTS_INDEX} promises tensors that the files lack: {', '.join(lost[:3])}. "
            "The shards are of different checkpoints; fetch it again."
        )


def _check_index(folder: Path, index: dict[str, Any], weight_map: dict[str, str]) -> None:
    """Raise ``CheckpointError`` for an index that loaders do not read, or files that they would not find by its names."""
    if not isinstance(index.get("metadata"), dict):
        raise CheckpointError(
            f'{folder / WEIGHTS_INDEX} has no `metadata`, without which transformers does not read it. Add "metadata": {{}}'
            ", or save the checkpoint again with save_pretrained."
        )
    if odd := sorted({name for name in weight_map.values() if name != WEIGHTS and not SHARD.fullmatch(name)}):
        raise CheckpointError(
            f"{folder / WEIGHTS_INDEX} names {', '.join(odd[:3])}; weights are read from model-00001-of-0000N.safetensors "
            "beside it. Load the checkpoint with transformers and save it again with save_pretrained."
        )


def _check_layers(folder: Path, num_tensors: int) -> None:
    """Raise ``CheckpointError`` for a config of no layers, or of more than there are tensors: building a model of it fills
    the memory, or passes all layers' weights by."""
    config = read_json_file(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    nested = [value for name in ("text_config", "llm_config") if isinstance(value := config.get(name), dict)]
    for part in (config, *nested):
        for name in OF_LAYERS:
            number = part.get(name)
            if type(number) is int and not 0 < number <= num_tensors:
                raise CheckpointError(
                    f"{folder / CONFIG} says {name} {number}, and the files hold {num_tensors} tensors. Config and weights "
                    "are of different checkpoints; fetch it again."
                )


def _check_one_file(folder: Path, names: tuple[str, ...]) -> None:
    """Raise ``CheckpointError`` for shards that no index tells of: what reads them asks the index which to open."""
    if WEIGHTS in names or not names:
        return
    shards = [found for name in names if (found := SHARD.fullmatch(name))]
    wanted = {int(found["of"]) for found in shards}
    there = {int(found["number"]) for found in shards}
    lost = [number for number in range(1, max(wanted, default=0) + 1) if number not in there]
    raise CheckpointError(
        f"{folder} holds its weights in {', '.join(names[:3])} and no {WEIGHTS_INDEX}, which says what is in "
        + (
            f"which; of {max(wanted)} shards {', '.join(map(str, lost[:5]))} are missing, too"
            if lost
            else "which"
        )
        + ". Fetch the checkpoint again with all of its files, or save it again with save_pretrained."
    )
