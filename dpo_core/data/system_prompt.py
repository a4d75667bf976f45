"""The system prompt that stands beside a conversation: in a column of its own, or in the column of the prompt.

People write it as a text, a message, a list of messages or a list of texts, and any of these as JSON text. It is used,
or the row is dropped: a prompt that vanishes is another prompt.
"""

from collections.abc import Iterable
from itertools import dropwhile, takewhile
from typing import Any

from dpo_core.contract.drops import RowDropped
from dpo_core.data.json_text import of_text, unambiguous
from dpo_core.data.messages import NOTHING_ELSE, beyond_text, is_message, message, same_turns

SYSTEM_COLUMNS = (
    *("system", "system_prompt", "system_message", "system_instruction", "system_instructions"),
    *("system_text", "system_content", "systemPrompt", "sys_prompt"),
)
ROLE = "system"


def system_turns(raw: Any, fields: frozenset[str] = NOTHING_ELSE) -> list[dict]:
    """Return the one system turn that ``raw`` means, several of them as one; none for what is empty.

    Raises ``RowDropped`` for anything that is no system prompt.
    """
    return [joined] if (joined := _joined(_turns(raw, fields))) is not None else []


def system_beside(row: dict, fields: frozenset[str] = NOTHING_ELSE) -> list[dict]:
    """Return the system turn of a row's own columns, none without one. Raises ``RowDropped`` where two of them differ."""
    columns = [column for column in SYSTEM_COLUMNS if column in row]
    found = [turns for column in columns if (turns := system_turns(row[column], fields))]
    if any(not same_turns(found[0], other) for other in found[1:]):
        raise RowDropped(
            "bad_system", "two columns hold different system prompts; name the right one with `columns`"
        )
    return found[0] if found else []


def leading_system(conversation: Iterable[dict]) -> list[dict]:
    """Return the system turns with which a conversation begins, as one; none if it begins otherwise."""
    turns = list(takewhile(lambda turn: turn["role"] == ROLE, conversation))
    return [joined] if (joined := _joined(turns)) is not None else []


def without_system(conversation: list[dict]) -> list[dict]:
    """Return the turns behind the system's own at the beginning."""
    return list(dropwhile(lambda turn: turn["role"] == ROLE, conversation))


def _turns(raw: Any, fields: frozenset[str]) -> list[dict]:
    if raw is None:
        return []
    if isinstance(raw, str):
        parsed, is_repeated = of_text(raw)
        items = parsed if isinstance(parsed, list) else [parsed]
        if parsed is not raw and items and all(isinstance(item, str) or is_message(item) for item in items):
            return _turns(unambiguous(raw) if is_repeated else items, fields)
        return [{"role": ROLE, "content": raw}]
    if isinstance(raw, list):
        return [turn for item in raw for turn in _turns(item, fields)]
    if isinstance(raw, dict) and not any(value not in (None, "", [], {}) for value in raw.values()):
        return []
    if not is_message(raw):
        raise RowDropped(
            "bad_system", f"the system prompt is {type(raw).__name__}, expected a text or messages"
        )
    turn = message(raw, ROLE, fields)
    if turn["role"] != ROLE:
        raise RowDropped(
            "bad_system", f"a message of the role {turn['role']} stands where the system prompt is"
        )
    return [turn]


def _joined(turns: list[dict]) -> dict | None:
    """Turns as one: templates take one system turn at the beginning."""
    turns = [turn for turn in turns if turn["content"].strip() or beyond_text(turn)]
    if len(turns) < 2:
        return turns[0] if turns else None
    whole = {
        "role": ROLE,
        "content": "\n\n".join(turn["content"] for turn in turns if turn["content"].strip()),
    }
    for turn in turns:
        for key, value in beyond_text(turn).items():
            if whole.setdefault(key, value) != value:
                raise RowDropped("bad_system", f"two system messages have different {key}")
    return whole


def with_system(system: list[dict], conversation: list[dict]) -> list[dict]:
    """Return ``conversation`` behind the system turn beside it. Raises ``RowDropped`` if it has another one of its own."""
    if not system:
        return conversation
    if not (own := leading_system(conversation)):
        return [*system, *without_system(conversation)]  # those that it begins with say nothing
    said, beside = beyond_text(own[0]), beyond_text(system[0])
    if system[0]["content"].strip() not in own[0]["content"] or any(
        said.get(key, value) != value for key, value in beside.items()
    ):
        raise RowDropped(
            "bad_system", "the conversation begins with another system prompt than the one beside it"
        )
    return [{**conversation[0], **beside}, *conversation[1:]]
