"""Whether a chat template's text names a token that could close an answer: what a plan can say without rendering it."""

from collections.abc import Iterator
from pathlib import Path

from dpo_core.contract.chat_templates import TEMPLATE_NAMES, WITHOUT_END_MARK
from dpo_core.contract.config import CheckpointConfig
from dpo_core.contract.errors import CheckpointError
from dpo_core.contract.row_warnings import NO_END_MARK
from tasks.checkpoint.chosen_template import chosen_template
from tasks.checkpoint.own_files import read_json_file
from tasks.checkpoint.template_date import template_texts


def end_mark_warning(folder: Path, checkpoint: CheckpointConfig) -> str | None:
    """Return what to say of a template without any end mark, the one chosen or the tokenizer's own in ``folder``; None if
    it may have one, or cannot be read here. Raises ``ConfigError`` for a chosen file that is none.

    The tokens that open a turn are no end mark; they stand where the template opens the assistant's.
    """
    chosen = chosen_template(checkpoint).template
    if chosen in TEMPLATE_NAMES:
        return NO_END_MARK.format(found="") if chosen in WITHOUT_END_MARK else None
    try:
        texts = template_texts(folder, chosen)
        special = set(_special_tokens(read_json_file(folder / "tokenizer_config.json")))
    except (CheckpointError, OSError):
        return None
    whole = "\n".join(texts)
    if not texts or "eos_token" in whole or not special:
        return None
    opens = whole.partition("add_generation_prompt")[2]
    if any(token in whole and token not in opens for token in special):
        return None
    return NO_END_MARK.format(found="")


def _special_tokens(config: dict) -> Iterator[str]:
    added = config.get("added_tokens_decoder")
    for token in added.values() if isinstance(added, dict) else ():
        if isinstance(token, dict) and token.get("special") and isinstance(token.get("content"), str):
            yield token["content"]
    for name in ("eos_token", "pad_token"):
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token:
            yield token
