"""Another tokenizer than a checkpoint's own (``checkpoint.tokenizer``), put together with it before anything is trained.

Its files, chat template among them, take the place of the checkpoint's. config.json and generation_config.json say which
ids end, begin and pad a text; they are made to say it of this tokenizer, so that generation, export and hand-off, which
read them, agree with what was trained.
"""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpo_core.contract.checkpoint_files import (
    CONFIG,
    EXTRA_TEMPLATES,
    GENERATION_CONFIG,
    TOKENIZER_CONFIG,
    is_tokenizer_file,
)
from dpo_core.contract.config import CheckpointConfig
from dpo_core.contract.errors import CheckpointError
from dpo_core.contract.store import exclusive, fingerprint, new_directory, write_json
from tasks.checkpoint.own_files import check_inside, hash_named, opened_inside, read_json_file
from tasks.checkpoint.source import SECONDS_FOR_ANOTHER_RUN, Located, is_intact, tokenizer_folder
from tasks.checkpoint.token_ids import TokenIds, agreeing, token_ids

log = logging.getLogger(__name__)

VOCABULARY = "tokenizer.json"
AS_ITS_FILE_SAYS = "PreTrainedTokenizerFast"  # the class that adds nothing to tokenizer.json


def with_tokenizer(located: Located, config: CheckpointConfig, store_root: Path) -> Located:
    """Return the checkpoint with the tokenizer that ``config`` names; as it is, if it names none.

    The files are kept as ``<store>/checkpoints/<id>/``, without weights. Raises ``CheckpointError`` for a tokenizer that is
    none, brings code, or is too large for the model; ``ConfigError``, ``RemoteError`` of the Hub.
    """
    if config.tokenizer is None:
        return located
    folder, commit = tokenizer_folder(config, store_root)
    names = _names(folder)
    check_inside(folder, names)
    settings = _settings(folder, config)
    ids = token_ids(folder, settings)
    own = _own_ids(located.folder)
    model = read_json_file(located.folder / CONFIG) if (located.folder / CONFIG).is_file() else {}
    _check_size(ids, model, config)
    _compare(ids, own, config)
    changed = {CONFIG: agreeing(model, ids, own), TOKENIZER_CONFIG: settings}
    if (located.folder / GENERATION_CONFIG).is_file():
        generation = read_json_file(located.folder / GENERATION_CONFIG)
        changed[GENERATION_CONFIG] = agreeing(generation, ids, own)
    small = _kept(located.folder, folder, names, changed, store_root)
    return replace(located, small=small, tokenizer_revision=commit)


def _names(folder: Path) -> list[str]:
    beside = [path.name for path in folder.iterdir()]
    extra = [f"{EXTRA_TEMPLATES}/{path.name}" for path in (folder / EXTRA_TEMPLATES).glob("*.jinja")]
    return sorted(name for name in (*beside, *extra) if is_tokenizer_file(name) and (folder / name).is_file())


def _settings(folder: Path, config: CheckpointConfig) -> dict[str, Any]:
    """What tokenizer_config.json says, with a class in any case: without one that of the model would be taken."""
    if not (folder / VOCABULARY).is_file():
        raise CheckpointError(
            f"checkpoint.tokenizer {config.tokenizer} has no {VOCABULARY}. Load it with transformers' AutoTokenizer, and "
            "save it with save_pretrained into a directory that you name here."
        )
    settings = read_json_file(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
    if settings.get("auto_map"):
        raise CheckpointError(
            f"checkpoint.tokenizer {config.tokenizer} wants to run its own Python code (auto_map in {TOKENIZER_CONFIG}), "
            "which is never done for a tokenizer from elsewhere. Use one that stock transformers knows."
        )
    return settings if settings.get("tokenizer_class") else settings | {"tokenizer_class": AS_ITS_FILE_SAYS}


def _own_ids(folder: Path) -> TokenIds | None:
    """The ids of the checkpoint's own tokenizer, where it has one that tells them."""
    if not (folder / VOCABULARY).is_file():
        return None
    settings = read_json_file(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
    return token_ids(folder, settings)


def _check_size(ids: TokenIds, model: dict[str, Any], config: CheckpointConfig) -> None:
    """Raise ``CheckpointError`` if words of the vocabulary have ids that the model has no row for. Tokens that were added
    without resizing are common; rows that hold one are dropped, and a template that writes one is refused."""
    of_text = next((model[name] for name in ("text_config", "llm_config") if name in model), model)
    rows = of_text.get("vocab_size") if isinstance(of_text, dict) else None
    largest = max(ids.words.values(), default=-1)
    if type(rows) is int and largest >= rows:
        raise CheckpointError(
            f"checkpoint.tokenizer {config.tokenizer} has a vocabulary of {largest + 1} tokens, and the embedding of "
            f"{config.source} has {rows} rows: it is another model's. Name the tokenizer that the checkpoint was trained "
            "with."
        )


def _compare(ids: TokenIds, own: TokenIds | None, config: CheckpointConfig) -> None:
    if own is None:
        return
    other = sum(ids.words.get(word) != number for word, number in own.words.items())
    if other > len(own.words) // 2:
        log.warning(
            "%d of %d tokens have other ids in checkpoint.tokenizer %s than in the tokenizer beside %s. If the model was "
            "not trained with that one, what it reads is noise.",
            other,
            len(own.words),
            config.tokenizer,
            config.source,
        )


def _kept(
    checkpoint: Path, tokenizer: Path, names: list[str], changed: dict[str, dict[str, Any]], store_root: Path
) -> Path:
    """Write all small files into a folder of the store that is named by their contents, and return it."""
    checkpoints = store_root.expanduser().resolve() / "checkpoints"
    sources = {name: tokenizer for name in names} | {
        name: checkpoint for name in changed if name in (CONFIG, GENERATION_CONFIG)
    }
    unchanged = {
        name: folder
        for name, folder in sources.items()
        if name not in changed or read_json_file(folder / name) == changed[name]
    }
    contents = {name: hash_named(folder, [name])[name] for name, folder in unchanged.items()}
    rest = {name: value for name, value in changed.items() if name not in unchanged}
    path = checkpoints / fingerprint({"files": contents, "changed": rest})[:16]
    with exclusive(checkpoints, wait_seconds=SECONDS_FOR_ANOTHER_RUN):
        if not is_intact(path, contents) or not all((path / name).is_file() for name in rest):
            with new_directory(path) as aside:
                for name, folder in unchanged.items():
                    (aside / name).parent.mkdir(parents=True, exist_ok=True)
                    with opened_inside(folder, name) as source, (aside / name).open("wb") as copy:
                        shutil.copyfileobj(source, copy)
                for name, value in rest.items():
                    write_json(aside / name, value)
    return path
