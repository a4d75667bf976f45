"""The day that a chat template writes, for templates that write one: one for all of a job, and part of what names it."""

import json
from datetime import date
from pathlib import Path

from dpo_core.contract.checkpoint_files import EXTRA_TEMPLATES, TEMPLATE_FILES
from tasks.checkpoint.own_files import read_json_file, read_text_file

ASKS_FOR_THE_DAY = "strftime_now"  # as transformers calls it


def template_date(folder: Path, chosen: str | None, day: date | None) -> str | None:
    """Return ``day`` or, without one, today as text if the template ``chosen``, or the checkpoint's own in ``folder``,
    writes a date; None for a template that writes none, whose tokens are the same on any day."""
    written = any(ASKS_FOR_THE_DAY in text for text in template_texts(folder, chosen))
    return (day or date.today()).isoformat() if written else None


def template_texts(folder: Path, chosen: str | None) -> list[str]:
    """Return the texts that may hold the template: ``chosen``, a name or a text, else the checkpoint's files."""
    if chosen:
        return [chosen]
    config, *others = ("tokenizer_config.json", *TEMPLATE_FILES)
    named = [folder / name for name in others]
    found = [path for path in (*named, *sorted((folder / EXTRA_TEMPLATES).glob("*.jinja"))) if path.is_file()]
    texts = [read_text_file(path) for path in found]
    own = read_json_file(folder / config).get("chat_template") if (folder / config).is_file() else None
    return [*texts, *([own if isinstance(own, str) else json.dumps(own)] if own else [])]
