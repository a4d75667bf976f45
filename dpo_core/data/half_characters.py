"""Halves of characters: JSON can write one alone (``\\ud83d``, where a text was cut in the middle of an emoji), UTF-8 and
tokenizers cannot. In its place stands U+FFFD, as every decoder writes it; whole characters that were written as two halves
are put together.
"""

from dataclasses import replace
from typing import Any

from dpo_core.data.pairs import PreferencePair

IN_ITS_PLACE = "\ufffd"
_USUAL = {"role", "content"}
_UTF16 = "utf-16-le"  # in which a character beyond the first 65,536 is two halves


def whole(text: str) -> str:
    """Return a text of whole characters."""
    if not has_half(text):
        return text
    return text.encode(_UTF16, "surrogatepass").decode(_UTF16, "replace")


def has_half(text: str) -> bool:
    """Tell whether a text cannot be written in UTF-8."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def whole_pair(pair: PreferencePair) -> PreferencePair:
    """Return a pair of whole characters, which says whether any was replaced."""
    turns = (*pair.chosen, pair.rejected[-1])
    beside = (pair.tools, pair.constraints, pair.template_kwargs)
    if not any(map(_in_turn, turns)) and not any(map(_anywhere, filter(None, beside))):
        return pair
    chosen = [_all_whole(turn) for turn in pair.chosen]
    mended = replace(
        pair,
        prompt=chosen[:-1],
        chosen=chosen,
        rejected=[*chosen[:-1], _all_whole(pair.rejected[-1])],
        tools=_all_whole(pair.tools),
        constraints=tuple(map(_all_whole, pair.constraints)),
        template_kwargs=_all_whole(pair.template_kwargs),
    )
    return replace(mended, has_replaced=_num_replaced(mended) > _num_replaced(pair))


def _in_turn(turn: dict) -> bool:
    """Whether a half stands in a turn. Nearly all are a role and a text, looked at without a call for each."""
    if turn.keys() == _USUAL:
        return has_half(turn["content"]) or has_half(turn["role"])
    return _anywhere(turn)


def _anywhere(value: Any) -> bool:
    """Whether a half stands anywhere in a value."""
    if isinstance(value, str):
        return has_half(value)
    if isinstance(value, dict):
        return any(map(_anywhere, value)) or any(map(_anywhere, value.values()))
    return isinstance(value, list | tuple) and any(map(_anywhere, value))


def _all_whole(value: Any) -> Any:
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, dict):
        return {_all_whole(name): _all_whole(inner) for name, inner in value.items()}
    return [_all_whole(inner) for inner in value] if isinstance(value, list) else value


def _num_replaced(pair: PreferencePair) -> int:
    return str((pair.chosen, pair.rejected, pair.tools, pair.constraints, pair.template_kwargs)).count(
        IN_ITS_PLACE
    )
