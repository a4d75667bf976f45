"""Whether a chat template's text names a token that could close an answer: what a plan can say without rendering it."""

from collections.abc import Iterator
from pathlib import Path

from dpo_core.contract.errors import CheckpointError
from dpo_core.contract.row_warnings import NO_END_MARK
from tasks.checkpoint.own_files import read_json_file
from tasks.checkpoint.template_date import template_texts


def end_mark_warning(folder: Path, chosen: str | None) -> str | None:
    """Return what to say of a template without any end mark; None if it may have one, or cannot be read here.

    The tokens that open a turn are no end mark; they stand where the template opens the assistant's.
    """
    if chosen and "{" not in chosen:  # a name or a file: the mixture's ledger will say
        return None
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
