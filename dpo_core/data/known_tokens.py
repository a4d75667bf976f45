"""Whether the model has a row of its embedding for every token that its tokenizer may give.

An SFT job that adds tokens and does not resize leaves ids beyond the embedding, which end a forward with an index error.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from dpo_core.contract.checkpoint_files import CONFIG

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def rows_fewer_than_tokens(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> int | None:
    """Return the embedding's rows, as ``config.json`` in ``folder`` says, if the tokenizer's ids reach beyond; else None."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return None  # a tokenizer by itself
    of_text = next((config[name] for name in ("text_config", "llm_config") if name in config), config)
    rows = of_text.get("vocab_size") if isinstance(of_text, dict) else None
    if type(rows) is not int and (rows := _usual_rows(folder)) is None:
        return None
    return rows if max(tokenizer.get_vocab().values(), default=0) >= rows else None


def _usual_rows(folder: Path) -> int | None:
    """The rows that the architecture has where its config says nothing of them, as Gemma 3's with vision; None of
    one that is not known."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        rows = config.get_text_config().vocab_size
    except Exception:  # of code of its own, or of a config that another step will refuse
        return None
    return rows if type(rows) is int else None
