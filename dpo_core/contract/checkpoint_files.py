"""Which files make a checkpoint, and its two fingerprints: one formula for what is fetched and for what is exported.

What a run writes for itself, checkpoints and its last weights, has its names here, too."""

import re
from collections.abc import Collection
from pathlib import Path

from dpo_core.contract.store import fingerprint

CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG = "config.json", "generation_config.json", "tokenizer_config.json"
# Any one of these carries a vocabulary; tokenizer_config.json alone does not.
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
TEMPLATE_FILES, EXTRA_TEMPLATES = ("chat_template.jinja", "chat_template.json"), "additional_chat_templates"
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    *TEMPLATE_FILES,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
)
# Notes that a library writes about itself; they change with its version and mean nothing to the model.
VOLATILE_CONFIG_KEYS = frozenset({"_name_or_path", "transformers_version"})


def weights_fingerprint(config: dict, files: dict[str, str]) -> str:
    """Return the fingerprint of weight contents, architecture and remote code; of no name. ``config``: what config.json
    holds; ``files``: relative path -> sha256. What lies in folders (an adapter by itself) is none of the model's
    weights."""
    kept = {key: value for key, value in config.items() if key not in VOLATILE_CONFIG_KEYS}
    contents = sorted(
        sha for name, sha in files.items() if name.endswith((".safetensors", ".py")) and "/" not in name
    )
    return fingerprint({"weights": contents, "config": kept})


def tokenizer_fingerprint(files: dict[str, str]) -> str:
    """Return the fingerprint of the tokenizer's files, chat template included. ``files``: relative path -> sha256."""
    return fingerprint({name: sha for name, sha in files.items() if is_tokenizer_file(name)})


def is_tokenizer_file(name: str) -> bool:
    """Tell whether a file of a checkpoint, by its relative path, is its tokenizer's; chat templates are."""
    return name in TOKENIZER_FILES or name.startswith(f"{EXTRA_TEMPLATES}/")


# Of a run: whole, or a part by each rank, or (the last weights of a large model) whole tensors in several files.
RUN_WEIGHTS, RUN_OPTIMIZER = "model.safetensors", "optimizer.safetensors"
RUN_STATE, RUN_MANIFEST = "state.json", "manifest.json"
_PART = re.compile(r"(.+)\.part-(\d{5})-of-(\d{5})\.safetensors")


def part_of(file: str, rank: int, ranks: int) -> str:
    """Return the name of what one of ``ranks`` writes of a file: of one alone, the file itself."""
    stem = file.removesuffix(".safetensors")
    return file if ranks == 1 else f"{stem}.part-{rank + 1:05d}-of-{ranks:05d}.safetensors"


def shard_of(file: str, number: int, count: int) -> str:
    """Return the name of one of ``count`` files that hold whole tensors, as libraries name them: of one, the file itself."""
    stem = file.removesuffix(".safetensors")
    return file if count == 1 else f"{stem}-{number + 1:05d}-of-{count:05d}.safetensors"


def is_complete(file: str, names: Collection[str]) -> bool:
    """Tell whether ``names`` have a file whole or all of its parts."""
    parts = [
        match for name in names if (match := _PART.fullmatch(name)) and f"{match[1]}.safetensors" == file
    ]
    return file in names or (bool(parts) and all(len(parts) == int(part[3]) for part in parts))


def files_of(folder: Path, file: str) -> list[Path]:
    """Return what holds a file's tensors in a folder: it, its shards or its parts; itself where there is nothing."""
    stem = re.escape(file.removesuffix(".safetensors"))
    pieces = re.compile(stem + r"(\.part)?-\d{1,9}-of-\d{1,9}\.safetensors")
    found = sorted(path for path in folder.glob("*.safetensors") if pieces.fullmatch(path.name))
    return [folder / file] if (folder / file).exists() or not found else found
