"""Turns in the form that a chat template takes: what it does not read becomes text, objects become JSON text if need be.

Rows of the field hold the arguments of a call as an object or as JSON text, and templates are written for one of the
two: some join them to the text by ``+``, which fails on an object, some print them, which gives Python's spelling.
"""

import json
import re
from typing import Any

from dpo_core.data.messages import KEPT_KEYS


def unread(template: str, *fields: str) -> tuple[str, ...]:
    """Return the fields that a template names nowhere as a message's: ``message.functions``, ``message['functions']``."""
    return tuple(name for name in fields if not re.search(rf"\.{name}\b|['\"]{name}['\"]", template))


def calls_as_text(turn: dict, field: str) -> dict:
    """Write ``tool_calls`` or ``function_calls`` behind the content, for a template that knows none."""
    calls = turn[field]
    if field == "tool_calls":
        texts = [json.dumps(call["function"], ensure_ascii=False) for call in calls]
    else:
        texts = [calls if isinstance(calls, str) else json.dumps(calls, ensure_ascii=False)]
    kept = {key: value for key, value in turn.items() if key != field}
    return {**kept, "content": "\n".join(filter(None, [turn["content"], *texts]))}


def objects_of(turns: list[dict]) -> list[Any]:
    """Return what the turns hold as objects that might as well be JSON text."""
    found = [call["function"]["arguments"] for turn in turns for call in turn.get("tool_calls") or ()]
    found += [turn[key] for turn in turns if len(turn) > 2 for key in KEPT_KEYS if key in turn]
    return [value for value in found if isinstance(value, dict | list)]


def with_json_text(turns: list[dict]) -> list[dict]:
    """Return the turns with their ``objects_of`` as JSON text."""
    made = []
    for turn in turns:
        changed = {key: _json_text(turn[key]) for key in KEPT_KEYS if key in turn}
        if calls := turn.get("tool_calls"):
            changed["tool_calls"] = [
                {
                    **call,
                    "function": {**call["function"], "arguments": _json_text(call["function"]["arguments"])},
                }
                for call in calls
            ]
        made.append({**turn, **changed})
    return made


def _json_text(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def prints_objects(text: str, turns: list[dict]) -> bool:
    """Return whether a rendered text holds an object of the turns in Python's spelling, ``{'city': 'Oslo'}``."""
    said = "\n".join(turn["content"] for turn in turns)
    return any(
        text.count(spelling) > said.count(spelling)
        for value in objects_of(turns)
        if value and (spelling := str(value)) != _json_text(value)
    )


def is_plain(turns: list[dict]) -> bool:
    """Return whether there are turns, each a role and a text: nothing that the library would rename, drop or convert."""
    for turn in turns:
        if len(turn) != 2 or type(turn.get("content")) is not str or type(turn.get("role")) is not str:
            return False
    return bool(turns)
