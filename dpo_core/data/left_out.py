"""What a chat template leaves out of an answer: reasoning cut off, content that it expects in another form.

An answer is all that the turn says: content, reasoning, calls with their arguments. Of most rows a look for the content in
the rendered text says that all of it is there; blanks do not count, and neither does what a template adds.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

from dpo_core.data.messages import SPOKEN_KEYS

LeftOut = Literal["nothing", "part", "all"]


def said_by(turn: dict) -> Iterator[str]:
    """Return the texts that an answer consists of."""
    yield turn["content"]
    for key in SPOKEN_KEYS:
        if value := turn.get(key):
            yield from _texts(value)
    for call in turn.get("tool_calls", ()):
        yield call["function"]["name"]
        yield from _texts(call["function"]["arguments"])


def _texts(value: Any) -> Iterator[str]:
    """Return the words in a value, as they stand in JSON or in any other spelling of it."""
    if isinstance(value, str):
        parsed = _object(value)
        yield from [value] if parsed is None else _texts(parsed)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)


def _object(text: str) -> Any:
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def is_all_there(turn: dict, rendered: str) -> bool:
    """Return whether the text rendered for a turn, its header aside, holds all that the turn says, letter by letter."""
    texts = [turn["content"]] if len(turn) == 2 else list(said_by(turn))
    if all(text.strip() in rendered for text in texts):
        return True
    there = bare(rendered)
    return all(bare(text) in there for text in texts)


def left_out(turn: dict, rendered: str, frame: str) -> LeftOut:
    """Return how much of a turn is missing in ``rendered``, of which ``frame`` is there whatever the turn says.

    Letters are counted, so that escapes and other orders are no loss.
    """
    there = Counter(bare(rendered)) - Counter(bare(frame))
    said = Counter("".join(map(bare, said_by(turn))))
    if not said - there:
        return "nothing"
    return "part" if there else "all"


def bare(text: str) -> str:
    """Return a text without blanks, in small letters: some templates write in capitals."""
    return "".join(text.split()).casefold()
