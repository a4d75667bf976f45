"""Texts of settings that cannot be meant: no file system, database or JSON takes them, and each says so by an error of its
own, in the middle of a run. Torch-free."""

import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from dpo_core.contract.chat_templates import is_template_text

LONGEST_NAME, LONGEST_PATH = 255, 4096  # bytes; of a file's name and of a path, on Linux
DEEPEST = 100  # lists and objects around a value; PyYAML and Python's JSON give up at some hundreds, each in its own words
IMPOSSIBLE = re.compile("[\x00\ud800-\udfff]")
# Settings that may be paths: places, and ids of the Hub, which are folders in its client's cache.
PLACES = frozenset(
    {
        *("source", "tokenizer", "gguf_file", "chat_template", "model", "python"),
        *("root", "directory", "wheelhouse", "signing_key_file", "mount_path", "task_folders"),
    }
)


def check_texts(values: Any) -> None:
    """Raise ``ValueError`` for the first text in settings that is no text, or a path that is too long to be one, and for
    values that are nested without end."""
    for place, text in _texts(values, ()):
        setting = ".".join(place)
        if found := IMPOSSIBLE.search(text):
            raise ValueError(
                f"{setting} holds the character U+{ord(found[0]):04X} (behind {text[: found.start()][-20:]!r}), which no "
                "text can have; remove it"
            )
        name = next((part for part in reversed(place) if not part.isdigit()), "")
        if name in PLACES and not is_template_text(text) and _is_too_long(text):
            raise ValueError(
                f"{setting} begins {text[:40]!r} and is longer than a path can be: {LONGEST_PATH:,} bytes, and "
                f"{LONGEST_NAME} between two slashes. Correct it"
            )


def _is_too_long(text: str) -> bool:
    names = [len(name.encode()) for name in text.split("/")]
    return max(names) > LONGEST_NAME or sum(names) + len(names) > LONGEST_PATH


def _texts(value: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text with the setting that it stands in; names of settings, too, which may be a set's columns. Raises
    ``ValueError``."""
    if len(place) > DEEPEST:
        raise ValueError(
            f"{'.'.join(place[:4])} holds more than {DEEPEST} values within each other, which no setting needs"
        )
    if isinstance(value, str | PurePath):
        yield place, str(value)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield place, str(name)
            yield from _texts(inner, (*place, str(name)))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _texts(inner, (*place, str(number)))
