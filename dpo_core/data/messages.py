"""Chat messages as they are found in the wild, brought into one spelling.

The spelling is that of chat templates: ``{"role": "user", "content": "..."}`` with roles system, user, assistant and
tool, and ``tool_calls`` where the assistant calls one.
"""

import hashlib
import json
from typing import Any

from dpo_core.contract.drops import RowDropped
from dpo_core.data.json_text import from_json_text, is_nothing, of_text, unambiguous, without_nulls

_SORTED_JSON = json.JSONEncoder(sort_keys=True).encode
ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "customer": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "chatbot": "assistant",
    "system": "system",
    "developer": "system",
    "observation": "tool",
    "tool": "tool",
    "function": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "ipython": "tool",
    "function_call": "function_call",
    "tool_call": "function_call",
}
# Words for the role of a result that some templates, or the tokens that they write by a turn's role, know (Llama 3.1, GLM 4,
# Phi 4): ``fields`` holds ``role=ipython`` then, and the turn keeps it.
OTHER_ROLES = ("ipython", "observation", "tool_response")
PLAIN_ROLES = frozenset({"user", "assistant", "system", "tool"})  # those that are already in our spelling
ROLE_KEYS, CONTENT_KEYS = ("role", "from", "speaker"), ("content", "value", "text")
# What many templates read beyond role, content and tool_calls. Said by the assistant, and so part of an answer:
SPOKEN_KEYS = ("reasoning_content", "reasoning", "thinking", "tool_plan", "function_calls")
KEPT_KEYS = ("name", "tool_call_id", *SPOKEN_KEYS, "functions", "tools")  # the last two: of a system turn
ARGUMENT_KEYS = (
    "arguments",
    "parameters",
    "args",
    "input",
    "kwargs",
)  # OpenAI's, Llama's, LangChain's, Anthropic's
_OF_A_CALL = frozenset({"name", "id", "type", "index", "call_id", "tool_call_id", "description"})
MEDIA = ("image", "audio", "video", "input_image", "input_audio")  # types of parts that are no text
NOTHING_ELSE: frozenset[str] = (
    frozenset()
)  # fields that the template at hand reads, too (``template_fields``)
EVERY = "*"  # among ``fields``: it may read any field of a turn
WRAPPERS = ("messages", "conversations")  # {"messages": [...], "system": ...}
_BROUGHT_INTO_OURS = frozenset({*ROLE_KEYS, *CONTENT_KEYS, "tool_calls", "function_call", *KEPT_KEYS})


def _text_of_part(part: Any) -> Any:
    """The text of a part of a message; None of a picture, a sound or a thought, also with a text beside it."""
    if not isinstance(part, dict):
        return part
    kind, text = part.get("type"), part.get("text")
    is_other = isinstance(kind, str) and (("text" not in kind and not text) or kind.startswith(MEDIA))
    return None if is_other else text


def _content(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        texts = [_text_of_part(part) for part in value]
        strings = [text for text in texts if isinstance(text, str)]
        if len(strings) == len(texts):
            return "".join(strings)
        raise RowDropped("not_text", "a message holds something else than text")
    return str(value)


def _arguments(function: dict, call: dict) -> Any:
    """The arguments of a call, by any of their names. Raises ``RowDropped`` where they may stand under another one."""
    for holder in (function, call):
        for name in ARGUMENT_KEYS:
            if name in holder:
                return holder[name]
    if others := function.keys() - _OF_A_CALL:
        raise RowDropped(
            "not_a_preference_row", f"a tool call has no {ARGUMENT_KEYS[0]} but {', '.join(sorted(others))}"
        )
    return {}


def _tool_call(call: Any) -> dict:
    call = without_nulls(unambiguous(call))
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowDropped("not_a_preference_row", "a tool call has no function name")
    arguments = from_json_text(_arguments(function, call))
    identity = {"id": call["id"]} if "id" in call else {}
    return {**identity, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _calls(raw: Any) -> list:
    """The calls in a column of them; of nulls and of the word for one there is none."""
    calls = raw if isinstance(raw, list) else [raw]
    return [call for call in calls if not is_nothing(call) and call not in ("null", "None")]


def message(raw: Any, default_role: str | None = None, fields: frozenset[str] = NOTHING_ELSE) -> dict:
    """Return one message in our spelling, with what it has of ``fields`` beside what is always kept. Raises
    ``RowDropped`` where it is none."""
    if not isinstance(raw, dict):
        raise RowDropped("not_a_preference_row", "a message is not an object")
    roles = [raw[key] for key in ROLE_KEYS if raw.get(key) is not None]
    role = next((one for one in roles if isinstance(one, str)), None if roles else default_role)
    content_key = next((key for key in CONTENT_KEYS if raw.get(key) is not None), None)
    calls = _calls(unambiguous(raw.get("tool_calls")))
    single = unambiguous(raw.get("function_call"))  # OpenAI's older form
    calls = calls or ([single] if isinstance(single, dict) and not is_nothing(single) else [])
    kept = _kept(raw, fields)
    has_content = any(key in raw for key in CONTENT_KEYS) or calls or any(key in kept for key in SPOKEN_KEYS)
    if role is None or not has_content:
        raise RowDropped("not_a_preference_row", "a message has no role or no content")
    content = _content(raw.get(content_key)) if content_key else ""
    role = role.strip().lower()
    role = role if role in OTHER_ROLES and f"role={role}" in fields else ROLES.get(role, role)
    if role == "function_call":
        called = unambiguous(content)
        role, content, calls = "assistant", "", called if isinstance(called, list) else [called]
    made: dict[str, Any] = {"role": role, "content": content}
    if calls:
        made["tool_calls"] = [_tool_call(call) for call in calls]
    return {**made, **kept}


def _kept(raw: dict, fields: frozenset[str]) -> dict:
    """What else templates read, as it is; objects without the nulls that columnar files fill in."""
    kept = {
        key: without_nulls(value) if isinstance(value, dict | list) else value
        for key in KEPT_KEYS
        if type(value := raw.get(key)) in (str, int, float) or (isinstance(value, dict | list) and value)
    }
    others = sorted((raw.keys() if EVERY in fields else fields & raw.keys()) - _BROUGHT_INTO_OURS)
    return kept | {key: without_nulls(raw[key]) for key in others if raw[key] not in (None, "", [], {})}


def _plain(raw: Any) -> dict | None:
    """``message(raw)`` where it is nothing but a known role and a text, which nearly all are; None for any other."""
    if type(raw) is not dict or len(raw) != 2:
        return None
    role, content = raw.get("role"), raw.get("content")
    return (
        {"role": role, "content": content}
        if type(content) is type(role) is str and role in PLAIN_ROLES
        else None
    )


def is_message(raw: Any) -> bool:
    """Return whether a raw value has the shape of a message: an object with a role or a content."""
    shape = (*ROLE_KEYS, *CONTENT_KEYS, "tool_calls", "function_calls")
    return isinstance(raw, dict) and any(key in raw for key in shape)


def _one_by_one(held: Any) -> list:
    """Messages of an object that holds each field of all of them, ``{"role": [...], "content": [...]}``, as `datasets` keeps
    sequences of objects; else itself, or in a list. Raises ``RowDropped`` for fields of different lengths."""
    if isinstance(held, list):
        return held
    columns = {name: values for name, values in held.items() if isinstance(values, list)}
    if not any(key in columns for key in ROLE_KEYS):
        return [held]
    if len({len(values) for values in columns.values()}) > 1:
        raise RowDropped("not_a_preference_row", "the fields of its messages are lists of different lengths")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def message_list(
    raw: Any, default_role: str | None = None, fields: frozenset[str] = NOTHING_ELSE
) -> list[dict] | None:
    """Return messages of a list, a single message, ``{"messages": [...]}``, or JSON text of these, or text in Python's
    spelling; None for anything else.

    Text is taken for messages only if each names its role: an answer may well be JSON itself.
    """
    if type(raw) is list and raw:
        plain = [turn for item in raw if (turn := _plain(item)) is not None]
        if len(plain) == len(raw):
            return plain
    parsed, is_repeated = of_text(raw)
    if isinstance(parsed, dict):
        parsed = _one_by_one(
            next((parsed[key] for key in WRAPPERS if isinstance(parsed.get(key), list)), parsed)
        )
    if not isinstance(parsed, list) or not parsed or not all(is_message(item) for item in parsed):
        return None
    if isinstance(raw, str) and not all(any(key in item for key in ROLE_KEYS) for item in parsed):
        return None
    return [message(item, default_role, fields) for item in (unambiguous(raw) if is_repeated else parsed)]


def wrapper(raw: Any) -> dict | None:
    """Return the object that holds messages beside other things, also where it is JSON text; None for anything else."""
    found = from_json_text(raw) if isinstance(raw, str) and raw.lstrip()[:1] == "{" else raw
    is_one = isinstance(found, dict) and any(isinstance(found.get(key), list) for key in WRAPPERS)
    return found if is_one else None


def is_blank(turn: dict) -> bool:
    """Return whether a turn says nothing."""
    return not turn["content"].strip() and not turn.get("tool_calls") and not any(map(turn.get, SPOKEN_KEYS))


def beyond_text(turn: dict) -> dict:
    """Return what a turn says beside its role, its content and its calls, blanks at the ends aside; no blank values."""
    if len(turn) == 2:
        return {}
    first = [key for key in KEPT_KEYS if key in turn]
    found = {key: turn[key] for key in [*first, *(turn.keys() - _BROUGHT_INTO_OURS)]}
    bare = {key: value.strip() if isinstance(value, str) else value for key, value in found.items()}
    return {key: value for key, value in bare.items() if value or type(value) in (int, float)}


def same_turn(left: dict, right: dict) -> bool:
    """Return whether two messages say the same, blanks at the ends aside."""
    return left == right or (
        left["role"] == right["role"]
        and left["content"].strip() == right["content"].strip()
        and left.get("tool_calls") == right.get("tool_calls")
        and beyond_text(left) == beyond_text(right)
    )


def same_turns(left: list[dict], right: list[dict]) -> bool:
    """Return whether two conversations say the same, blanks at the ends of turns aside."""
    return len(left) == len(right) and all(map(same_turn, left, right))


def prompt_key(prompt: list[dict]) -> str:
    """Return the key (hex) of all that a prompt's turns say; blanks at the ends of turns do not make another prompt."""
    turns = [_said(turn) for turn in prompt]
    return hashlib.blake2b(_SORTED_JSON(turns).encode(), digest_size=16).hexdigest()


def _said(turn: dict) -> tuple:
    said = (turn["role"], turn["content"].strip(), turn.get("tool_calls"))
    return (*said, beyond) if (beyond := beyond_text(turn)) else said
