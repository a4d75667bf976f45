"""Chat messages, tools and constraints as they are found in the wild, brought into one spelling.

The spelling is that of chat templates: ``{"role": "user", "content": "..."}`` with roles system, user, assistant and
tool, and ``tool_calls`` where the assistant calls one.
"""

import json
from typing import Any

from dpo_core.contract.chat_templates import check_template_arguments
from dpo_core.contract.drops import RowDropped
from dpo_core.data.checkers import is_meant, misfit
from dpo_core.data.ifeval import INSTRUCTIONS
from dpo_core.data.repeated_names import RepeatedName, value_of

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
_PLAIN_ROLES = frozenset({"user", "assistant", "system", "tool"})  # those that are already in our spelling
ROLE_KEYS, CONTENT_KEYS = ("role", "from", "speaker"), ("content", "value", "text")
# What many templates read beyond role, content and tool_calls. Said by the assistant, and so part of an answer:
SPOKEN_KEYS = ("reasoning_content", "reasoning", "thinking", "tool_plan", "function_calls")
KEPT_KEYS = ("name", "tool_call_id", *SPOKEN_KEYS, "functions", "tools")  # the last two: of a system turn
NOTHING_ELSE: frozenset[str] = (
    frozenset()
)  # fields that the template at hand reads, too (``template_fields``)
_BROUGHT_INTO_OURS = frozenset({*ROLE_KEYS, *CONTENT_KEYS, "tool_calls", "function_call", *KEPT_KEYS})


def without_nulls(value: Any) -> Any:
    """Drop null fields of objects, recursively: columnar files fill every field that any row has."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def of_json_text(value: Any) -> tuple[Any, bool]:
    """Return what a string of JSON holds if it is an object or a list, else ``value`` itself; and whether a name has several
    values in it, so that another value than the one returned may be meant."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value, False
    for parse, is_repeated in ((value_of, False), (json.loads, True)):
        try:
            return parse(value), is_repeated
        except RepeatedName:
            continue
        except (
            ValueError,
            RecursionError,
        ):  # or nested beyond what the parser follows: "[[[[ ...", no JSON of anybody's
            break
    return value, False


def from_json_text(value: Any) -> Any:
    """Return the value that a string of JSON holds if it is an object or a list, else ``value`` itself: also where a name
    has several values, which the text keeps."""
    found, is_repeated = of_json_text(value)
    return value if is_repeated else found


def unambiguous(value: Any) -> Any:
    """Return what a string of JSON holds, or ``value`` itself. Raises ``RowDropped`` where a name has several values."""
    found, is_repeated = of_json_text(value)
    if is_repeated:
        raise RowDropped("repeated_name", f"one name with several values in {value[:60]!r}")
    return found


def _content(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in value]
        strings = [text for text in texts if isinstance(text, str)]
        if len(strings) == len(texts):
            return "".join(strings)
        raise RowDropped("not_text", "a message holds something else than text")
    return str(value)


def _tool_call(call: Any) -> dict:
    call = without_nulls(unambiguous(call))
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowDropped("not_a_preference_row", "a tool call has no function name")
    arguments = from_json_text(function.get("arguments", function.get("parameters", {})))
    identity = {"id": call["id"]} if "id" in call else {}
    return {**identity, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def message(raw: Any, default_role: str | None = None, fields: frozenset[str] = NOTHING_ELSE) -> dict:
    """Return one message in our spelling, with what it has of ``fields`` beside what is always kept. Raises
    ``RowDropped`` where it is none."""
    if not isinstance(raw, dict):
        raise RowDropped("not_a_preference_row", "a message is not an object")
    role = next((raw[key] for key in ROLE_KEYS if isinstance(raw.get(key), str)), default_role)
    content_key = next((key for key in CONTENT_KEYS if raw.get(key) is not None), None)
    calls = unambiguous(raw.get("tool_calls")) or []
    single = unambiguous(raw.get("function_call"))  # OpenAI's older form
    calls = calls or ([single] if isinstance(single, dict) else [])
    kept = _kept(raw, fields)
    has_content = any(key in raw for key in CONTENT_KEYS) or calls or any(key in kept for key in SPOKEN_KEYS)
    if role is None or not has_content:
        raise RowDropped("not_a_preference_row", "a message has no role or no content")
    content = _content(raw.get(content_key)) if content_key else ""
    role = ROLES.get(role.strip().lower(), role.strip().lower())
    if role == "function_call":
        called = unambiguous(content)
        role, content, calls = "assistant", "", called if isinstance(called, list) else [called]
    made = {"role": role, "content": content}
    if calls:
        made["tool_calls"] = [_tool_call(call) for call in (calls if isinstance(calls, list) else [calls])]
    return {**made, **kept}


def _kept(raw: dict, fields: frozenset[str]) -> dict:
    """What else templates read, as it is; objects without the nulls that columnar files fill in."""
    kept = {
        key: without_nulls(value) if isinstance(value, dict | list) else value
        for key in KEPT_KEYS
        if isinstance(value := raw.get(key), str) or (isinstance(value, dict | list) and value)
    }
    others = sorted((fields & raw.keys()) - _BROUGHT_INTO_OURS)
    return kept | {key: without_nulls(raw[key]) for key in others if raw[key] not in (None, "", [], {})}


def _plain(raw: Any) -> dict | None:
    """``message(raw)`` where it is nothing but a known role and a text, which nearly all are; None for any other."""
    if type(raw) is not dict or len(raw) != 2:
        return None
    role, content = raw.get("role"), raw.get("content")
    return (
        {"role": role, "content": content}
        if type(content) is type(role) is str and role in _PLAIN_ROLES
        else None
    )


def is_message(raw: Any) -> bool:
    """Return whether a raw value has the shape of a message: an object with a role or a content."""
    shape = (*ROLE_KEYS, *CONTENT_KEYS, "tool_calls", "function_calls")
    return isinstance(raw, dict) and any(key in raw for key in shape)


def message_list(
    raw: Any, default_role: str | None = None, fields: frozenset[str] = NOTHING_ELSE
) -> list[dict] | None:
    """Return messages of a list, a single message, ``{"messages": [...]}``, or JSON text of these; None for anything
    else.

    Text is taken for JSON of messages only if each names its role: an answer may well be JSON itself.
    """
    if type(raw) is list and raw:
        plain = [turn for item in raw if (turn := _plain(item)) is not None]
        if len(plain) == len(raw):
            return plain
    parsed, is_repeated = of_json_text(raw)
    if isinstance(parsed, dict):
        inner = next(
            (parsed[key] for key in ("messages", "conversations") if isinstance(parsed.get(key), list)), None
        )
        parsed = [parsed] if inner is None else inner
    if not isinstance(parsed, list) or not parsed or not all(is_message(item) for item in parsed):
        return None
    if isinstance(raw, str) and not all(any(key in item for key in ROLE_KEYS) for item in parsed):
        return None
    return [message(item, default_role, fields) for item in (unambiguous(raw) if is_repeated else parsed)]


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
    return {key: value for key, value in bare.items() if value}


def same_turn(left: dict, right: dict) -> bool:
    """Return whether two messages say the same, blanks at the ends aside."""
    return (
        left["role"] == right["role"]
        and left["content"].strip() == right["content"].strip()
        and left.get("tool_calls") == right.get("tool_calls")
        and beyond_text(left) == beyond_text(right)
    )


def same_turns(left: list[dict], right: list[dict]) -> bool:
    """Return whether two conversations say the same, blanks at the ends of turns aside."""
    return len(left) == len(right) and all(map(same_turn, left, right))


def tool_list(raw: Any) -> list[dict] | None:
    """Return tools as JSON schemas (``{"type": "function", "function": {...}}``), None for none. Raises ``RowDropped``."""
    if raw is None or (isinstance(raw, str) and not raw.strip()):
        return None
    tools = without_nulls(unambiguous(raw))
    tools = [tools] if isinstance(tools, dict) else tools
    if not isinstance(tools, list):
        raise RowDropped("bad_tools", "tools are not a list")
    tools = [unambiguous(tool) for tool in tools]
    if not all(isinstance(tool, dict) for tool in tools):
        raise RowDropped("bad_tools", "a tool is not an object")
    return [
        {"type": "function", "function": tool} if "name" in tool and "function" not in tool else tool
        for tool in tools
    ] or None


def constraint_list(raw: Any) -> tuple[dict, ...]:
    """Return verifiable constraints (``{"name": ..., arguments}``); empty where the column holds something else, as the
    rules of another program do. Raises ``RowDropped`` for one of ours that no answer could be held to.
    """
    found = without_nulls(unambiguous(raw))
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list):
        return ()
    found = [unambiguous(item) for item in found]
    named = all(isinstance(item, dict) and isinstance(item.get("name"), str) for item in found)
    return _fitting(found) if named and any(map(is_meant, found)) else ()


def _fitting(constraints: list[dict]) -> tuple[dict, ...]:
    if wrong := next(filter(None, map(misfit, constraints)), None):
        raise RowDropped("bad_constraints", wrong)
    return tuple(constraints)


def ifeval_constraints(ids: Any, arguments: Any) -> tuple[dict, ...]:
    """Return the constraints of a row of IFEval's format: ``instruction_id_list`` and, of the same length, ``kwargs``. Empty
    where no id is one of IFEval's. Raises ``RowDropped`` like ``constraint_list``."""
    ids, arguments = unambiguous(ids), without_nulls(unambiguous(arguments))
    if not isinstance(ids, list) or not any(isinstance(one, str) and one in INSTRUCTIONS for one in ids):
        return ()
    arguments = [unambiguous(one) or {} for one in arguments] if isinstance(arguments, list) else []
    if len(arguments) != len(ids) or not all(isinstance(one, dict) for one in arguments):
        raise RowDropped(
            "bad_constraints", f"{len(ids)} in instruction_id_list, but kwargs has not an object for each"
        )
    return _fitting([{**one, "name": name} for name, one in zip(ids, arguments, strict=True)])


def template_arguments(raw: Any) -> dict:
    """Return a row's own variables for the chat template (``{"enable_thinking": false}``); empty for none. Raises
    ``RowDropped``."""
    if raw is None or (isinstance(raw, str) and not raw.strip()):
        return {}
    found = without_nulls(unambiguous(raw))
    if not isinstance(found, dict):
        raise RowDropped("bad_template_kwargs", "chat_template_kwargs is not an object")
    try:
        return check_template_arguments(found)
    except ValueError as error:
        raise RowDropped("bad_template_kwargs", str(error)) from None
