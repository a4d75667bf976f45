"""What a checkpoint folder holds, checked before anything is downloaded, copied or trained. Torch-free.

``weight_source`` picks the weights, ``checked_files`` names every file of the snapshot; both raise ``CheckpointError``
with the file, what is wrong with it and what to do.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dpo_core.contract.checkpoint_files import (
    CONFIG,
    EXTRA_TEMPLATES,
    GENERATION_CONFIG,
    TEMPLATE_FILES,
    TOKENIZER_CONFIG,
    TOKENIZER_FILES,
    VOCABULARY_FILES,
    is_tokenizer_file,
)
from dpo_core.contract.config import CheckpointConfig
from dpo_core.contract.errors import CheckpointError
from tasks.checkpoint.allowed_code import code_names
from tasks.checkpoint.own_files import check_inside, read_json_file
from tasks.checkpoint.quantised import holds_fp8
from tasks.checkpoint.safetensors_header import read_header
from tasks.checkpoint.shards import WEIGHTS, WEIGHTS_INDEX, check_safetensors

log = logging.getLogger(__name__)

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True, slots=True)
class WeightSource:
    """Where the weights are: ``names`` (relative) of ``kind``. Only safetensors go into a snapshot as they are;
    fp8 are such files whose values are 8-bit floats with scales beside them."""

    kind: Literal["safetensors", "fp8", "gguf", "pickle"]
    names: tuple[str, ...]


def weight_source(names: list[str], config: CheckpointConfig) -> WeightSource:
    """Choose the weights among the file ``names`` of a checkpoint: safetensors, then GGUF, then allowed pickle.

    A ``gguf_file`` in the config wins over all. Raises ``CheckpointError``.
    """
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    if config.gguf_file:
        if config.gguf_file not in ggufs:
            raise CheckpointError(
                f"checkpoint.gguf_file is {config.gguf_file}, but {config.source} holds "
                f"{', '.join(ggufs) or 'no .gguf file'}. Name one of its files."
            )
        return WeightSource("gguf", (config.gguf_file,))
    safetensors = sorted(name for name in names if name.startswith("model") and name.endswith(".safetensors"))
    if safetensors or WEIGHTS_INDEX in names:
        if "adapter_config.json" in names:
            raise CheckpointError(
                f"{config.source} holds full weights and, beside them, an adapter (adapter_config.json). transformers would "
                "load the adapter on the base that it names, others the full weights alone. Remove the adapter's files if "
                "it is merged into the weights, or merge it (peft: merge_and_unload, save_pretrained)."
            )
        return WeightSource("safetensors", tuple(safetensors))
    if "adapter_config.json" in names:
        raise CheckpointError(
            f"{config.source} is an adapter (LoRA) without the full weights. Merge it into its base "
            "model (peft: merge_and_unload, save_pretrained) and use the merged checkpoint."
        )
    if len(ggufs) > 1:
        raise CheckpointError(
            f"{config.source} holds several GGUF files: {', '.join(ggufs)}. Say which one with "
            "checkpoint.gguf_file."
        )
    if ggufs:
        return WeightSource("gguf", tuple(ggufs))
    return WeightSource("pickle", _allowed_pickles(names, config))


def weights_in(folder: Path, config: CheckpointConfig) -> WeightSource:
    """Choose the weights of a checkpoint in a folder, told apart by what the files hold. Raises ``CheckpointError``."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}.") from error
    return in_its_format(folder, named_by_index(folder, weight_source(names, config)))


def named_by_index(folder: Path, weights: WeightSource) -> WeightSource:
    """Return the files that loaders open: those that the index names, else ``model.safetensors`` alone where it is.

    What else lies there (a variant in half precision, a shard of an earlier save) is left behind. Raises ``CheckpointError``
    for a whole file beside an index that does not name it, of which loaders read the one or the other.
    """
    if weights.kind != "safetensors":
        return weights
    if not (folder / WEIGHTS_INDEX).is_file():
        return WeightSource("safetensors", (WEIGHTS,)) if WEIGHTS in weights.names else weights
    weight_map = read_json_file(folder / WEIGHTS_INDEX).get("weight_map")
    named = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()
    if not named:
        return weights  # which is said where they are checked
    if WEIGHTS in weights.names and WEIGHTS not in named:
        raise CheckpointError(
            f"{folder} holds {WEIGHTS} and, beside it, an index of shards that does not name it: the weights of two "
            f"saves. Remove {WEIGHTS}, or the index with its shards."
        )
    if stray := [name for name in weights.names if name not in named]:
        log.warning("%s: %s left behind, which %s does not name", folder, ", ".join(stray[:5]), WEIGHTS_INDEX)
    return WeightSource("safetensors", tuple(name for name in weights.names if name in named))


def in_its_format(folder: Path, weights: WeightSource) -> WeightSource:
    """Return the same, told apart by headers: safetensors may hold 8-bit floats, which must be converted first."""
    if weights.kind != "safetensors" or not any(
        holds_fp8(read_header(folder / name)) for name in weights.names
    ):
        return weights
    return WeightSource("fp8", weights.names)


def _allowed_pickles(names: list[str], config: CheckpointConfig) -> tuple[str, ...]:
    pickles = sorted(name for name in names if name.startswith("pytorch_model") and name.endswith(".bin"))
    if not pickles:
        raise CheckpointError(
            f"{config.source} holds no weights: expected {WEIGHTS}, {WEIGHTS_INDEX} with its shards, "
            f"or a .gguf file; found {', '.join(sorted(names)[:12]) or 'nothing'}."
        )
    if refused := [name for name in pickles if name not in config.allow_pickle]:
        raise CheckpointError(
            f"{config.source} has its weights only as pickle ({', '.join(refused)}), which can run code when it is "
            "loaded. Use a checkpoint with safetensors, or, if you trust its author, allow the files by name: "
            f"checkpoint.allow_pickle: [{', '.join(refused)}]."
        )
    return tuple(pickles)


def files_for_conversion(folder: Path, weights: WeightSource) -> list[str]:
    """Return weights and the small files beside them, which a conversion copies or reads along, sorted."""
    small = (".json", ".jinja", ".model", ".txt", ".py")
    return sorted(
        {path.name for path in folder.iterdir() if path.is_file() and path.suffix in small}
        | set(weights.names)
    )


def _check_tokenizer(folder: Path, config: CheckpointConfig) -> None:
    source = config.tokenizer or config.source
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise CheckpointError(
            f"{source} has no tokenizer: expected one of {', '.join(VOCABULARY_FILES)} in "
            f"{folder}. Save it with the model (tokenizer.save_pretrained)."
        )
    if config.chat_template or any((folder / name).is_file() for name in TEMPLATE_FILES):
        return
    in_config = folder / TOKENIZER_CONFIG
    if not (in_config.is_file() and read_json_file(in_config).get("chat_template")):
        raise CheckpointError(
            f"{source} has no chat template: neither chat_template.jinja nor `chat_template` in {in_config}. Name "
            "the template it was trained with (checkpoint.chat_template: chatml, tulu, ...), or add its "
            "chat_template.jinja to it."
        )


def _references(auto_map: Any) -> Iterator[str]:
    """Whatever an ``auto_map`` names: loaders take texts, lists, tuples of them, and some write a list for the whole."""
    if isinstance(auto_map, dict | list):
        for value in auto_map.values() if isinstance(auto_map, dict) else auto_map:
            yield from _references(value)
    elif auto_map:
        yield str(auto_map)


def check_remote_code(folder: Path, config: CheckpointConfig) -> None:
    """Raise ``CheckpointError`` if the checkpoint's configuration calls for code (``auto_map``) that is not allowed by name.

    Other Python files of a checkpoint never run and stay behind.
    """
    wanted: set[str] = set()
    for name in (CONFIG,) if config.tokenizer else (CONFIG, TOKENIZER_CONFIG):
        auto_map = read_json_file(folder / name).get("auto_map") if (folder / name).is_file() else None
        for reference in _references(auto_map):
            repository, _, module = reference.rpartition("--")
            wanted.add(
                f"{repository}--{module}" if repository else (module.rpartition(".")[0] or module) + ".py"
            )
    allowed = code_names(config.allow_remote_code)
    if refused := sorted(wanted - set(allowed)):
        raise CheckpointError(
            f"{config.source} wants to run its own Python code: {', '.join(refused)} (auto_map). Use a version that stock "
            "transformers knows, or read that code and then allow it by name: "
            f"checkpoint.allow_remote_code: [{', '.join(refused)}]."
        )
    if missing := [name for name in allowed if not (folder / name).is_file()]:
        raise CheckpointError(
            f"checkpoint.allow_remote_code names {', '.join(missing)}, which {config.source} does not have."
        )


def checked_files(
    folder: Path, weights: tuple[str, ...], config: CheckpointConfig, small: Path | None = None
) -> list[str]:
    """Return names (relative, sorted) of the files that make the snapshot, after every check. Raises
    ``CheckpointError``.

    Those for which ``is_small`` holds lie in ``small`` where another tokenizer is used; until it is put together they
    are not looked at.
    """
    checks_tokenizer = config.tokenizer is None or small is not None
    weights_folder, folder = folder, small or folder
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{config.source} has no {CONFIG} in {folder}, so its architecture is unknown. Save it with "
            "the model (model.save_pretrained)."
        )
    wanted = {
        CONFIG,
        GENERATION_CONFIG,
        WEIGHTS_INDEX,
        *TOKENIZER_FILES,
        *weights,
        *code_names(config.allow_remote_code),
    }
    places = {name: folder if is_small(name) else weights_folder for name in wanted | extra_templates(folder)}
    names = sorted(name for name, place in places.items() if (place / name).is_file())
    for place in {folder, weights_folder}:
        check_inside(place, [name for name in names if places[name] == place])
    for name in {CONFIG, GENERATION_CONFIG} & set(
        names
    ):  # cut off, the latter would be passed by without a word
        read_json_file(folder / name)
    if checks_tokenizer:
        _check_tokenizer(folder, config)
    check_remote_code(weights_folder, config)
    check_safetensors(weights_folder, weights)
    return names


def is_small(name: str) -> bool:
    """Tell whether a file of a snapshot is one that another tokenizer may replace or change."""
    return name in (CONFIG, GENERATION_CONFIG) or is_tokenizer_file(name)


def extra_templates(folder: Path) -> set[str]:
    """Return the templates beside the main one, by their paths in the folder."""
    return {path.relative_to(folder).as_posix() for path in folder.glob(f"{EXTRA_TEMPLATES}/*.jinja")}
