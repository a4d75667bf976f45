"""The prompt that stands beside the answers of a row, in a column of its own, in any form that people write it."""

import re
from typing import Any

from dpo_core.contract.drops import FormatName, RowDropped
from dpo_core.data.json_text import from_json_text
from dpo_core.data.left_out import bare, said_by
from dpo_core.data.messages import ROLE_KEYS, message_list, same_turn, same_turns, wrapper
from dpo_core.data.system_prompt import leading_system, system_beside, with_system, without_system

PROMPT_COLUMNS = ("prompt", "question", "instruction", "query")
CONVERSATION_COLUMNS = ("conversations", "conversation")
_OF_TURNS = frozenset({*CONVERSATION_COLUMNS, "messages", "history"})
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}


def messages_of(raw: Any, default_role: str | None, fields: frozenset[str]) -> list[dict] | None:
    """Return ``message_list``, behind the system prompt that stands beside the messages."""
    turns = message_list(raw, default_role, fields)
    if turns is None or (beside := wrapper(raw)) is None:
        return turns
    return with_system(system_beside(beside, fields), turns)


def first_of(row: dict, names: tuple[str, ...]) -> Any:
    """Return the first value that is there under one of the names."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def text_of(value: Any) -> str | None:
    """Return the text of a string or of a list holding one string."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) else None


def hh_turns(text: str | None) -> list[dict] | None:
    """Return turns of an hh-rlhf string, None if it does not start with one of its markers."""
    if text is None:
        return None
    before, *parts = _HH_TURN.split("\n\n" + text.lstrip())
    if before.strip() or not parts:
        return None
    return [
        {"role": _HH_ROLES[role], "content": content.strip()}
        for role, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def explicit_prompt(row: dict, fields: frozenset[str]) -> tuple[FormatName, list[dict] | None]:
    """Return the prompt that stands beside the answers, and the format that this makes the row."""
    raw = first_of(row, PROMPT_COLUMNS)
    columns = CONVERSATION_COLUMNS if raw is not None else (*CONVERSATION_COLUMNS, "messages")
    conversation = messages_of(first_of(row, columns), None, fields)
    if conversation is not None:
        return "sharegpt", _without_answer(row, conversation, fields)
    prompt = messages_of(raw, "user", fields)
    if prompt is not None:
        if "messages" in row and len(prompt) == 1 and (whole := _ending_with(row, prompt[0], fields)):
            return "sharegpt", whole
        return "prompt_messages", _behind_history(row, _without_answer(row, prompt, fields), fields)
    text = text_of(raw)
    if text is None:
        return "prompt_text", None
    turns = hh_turns(text) if _HH_TURN.search("\n\n" + text.lstrip()) else None
    if turns and turns[0]["role"] == "user":
        open_turn = turns[-1]["role"] == "assistant" and not turns[-1]["content"]
        return "hh_rlhf", turns[:-1] if open_turn else turns
    text = _with_input(row, text)
    last = {"role": "user", "content": text}
    if "messages" in row and (whole := _ending_with(row, last, fields)):
        return "sharegpt", whole
    return "prompt_text", _behind_history(row, [last], fields)


def _with_input(row: dict, text: str) -> str:
    """An instruction with the text that it is about, which Alpaca's form has in ``input``, likewise a question that does not
    hold it; a ``prompt`` is whole."""
    raw, extra = first_of(row, PROMPT_COLUMNS), row.get("input")
    if not isinstance(extra, str) or not extra.strip():
        return text
    asks = any(row.get(name) is raw for name in ("question", "query")) and extra not in text
    return f"{text}\n{extra}" if asks or row.get("instruction") is raw else text


def turns_before(row: dict, chosen: list[dict], rejected: list[dict], fields: frozenset[str]) -> list[dict]:
    """Return what a prompt of its own column says before the turns with which both sides begin, which may be the last
    exchange alone: ``prompt`` has three turns, and the sides the third one and an answer to it."""
    try:
        prompt = (explicit_prompt(row, fields)[1] if _may_have_turns(row) else None) or []
    except RowDropped:  # of a column that the row does without
        return []
    said, others = (without_system(turns)[:-1] for turns in (chosen, rejected))
    place = len(prompt) - len(said)
    if place <= 0 or not same_turns(prompt[place:], said) or not same_turns(said, others):
        return []
    return prompt[:place] if without_system(prompt[:place]) else []


def _may_have_turns(row: dict) -> bool:
    """Whether a prompt beside the answers may be more than one turn: of most rows it is a text, or there is none."""
    if has_several(row):
        return True
    raw = first_of(row, PROMPT_COLUMNS)
    return raw is not None and (not isinstance(raw, str) or raw.lstrip().startswith(("[", "{", "Human:")))


def has_several(row: dict) -> bool:
    """Return whether more than one column of a row may speak of what comes before its answers."""
    return not _OF_TURNS.isdisjoint(row)


def is_passed_by(row: dict, context: list[dict], fields: frozenset[str]) -> bool:
    """Return whether a column that speaks of what comes before the answers says something that is not in ``context``: all
    that stands there. A last answer that a conversation has beside the two is no prompt."""
    raw = first_of(row, PROMPT_COLUMNS)
    if isinstance(raw, str) and any(raw in turn["content"] for turn in context):
        others = _OF_TURNS.intersection(row)
        if not others or (others == {"messages"} and _begins_with(row["messages"], context)):
            return False  # nearly all: the user's text, and a conversation that begins with it
    try:
        name, prompt = explicit_prompt(row, fields)
        turns = prompt or []
        if name == "sharegpt" and turns and turns[-1]["role"] == "assistant":
            turns = turns[:-1]
        earlier = _earlier_turns(row.get("history"), fields) or []
        turns = [*earlier, *turns, *_said_beside(row, raw, name == "sharegpt", fields)]
    except RowDropped:  # it is not even read
        return True
    there = "".join(bare(text) for turn in context for text in said_by(turn))
    if _is_unread_history(row.get("history"), fields, there):
        return True
    if not turns or all(turn in context for turn in turns):
        return False
    return any(bare(text) not in there for turn in turns for text in said_by(turn))


def _begins_with(messages: Any, context: list[dict]) -> bool:
    """Whether raw messages, in their plainest form, are the turns of ``context`` and an answer."""
    if not isinstance(messages, list) or messages[:-1] != context:
        return False
    return isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant"


def _said_beside(row: dict, raw: Any, is_conversation: bool, fields: frozenset[str]) -> list[dict]:
    """The turns of the columns that ``explicit_prompt`` leaves unread: of a prompt beside a conversation, or of messages
    beside a prompt, without what the assistant says last."""
    if is_conversation:
        asked = messages_of(raw, "user", fields)
        return asked or [{"role": "user", "content": text_of(raw) or ""}]
    if raw is None or row.get("messages") is None:
        return []
    said = messages_of(row["messages"], None, fields) or []
    while said and said[-1]["role"] == "assistant":
        said = said[:-1]
    return said


def _is_unread_history(history: Any, fields: frozenset[str], there: str) -> bool:
    """Whether ``history`` holds something that is in no form of turns and does not stand ``there``."""
    if not history or _earlier_turns(history, fields) is not None:
        return False
    return bare(history) not in there if isinstance(history, str) else isinstance(history, list | dict)


def behind(earlier: list[dict], turns: list[dict]) -> list[dict]:
    """Return a conversation with the turns before it. Raises ``RowDropped`` if their system prompts differ."""
    return with_system(leading_system(turns), [*earlier, *without_system(turns)])


def _ending_with(row: dict, last: dict, fields: frozenset[str]) -> list[dict] | None:
    """The conversation in ``messages`` where the prompt is its last turn, or where it is the system's alone."""
    try:
        conversation = messages_of(row["messages"], None, fields)
    except RowDropped:  # as above
        return None
    if conversation is None:
        return None
    if not without_system(conversation):
        return behind(conversation, [last])
    prompt = _without_answer(row, conversation, fields)
    return prompt if len(prompt) > 1 and same_turn(prompt[-1], last) else None


def _behind_history(row: dict, prompt: list[dict], fields: frozenset[str]) -> list[dict]:
    """The prompt behind the turns in ``history``, unless it holds them."""
    history = _earlier_turns(row.get("history"), fields)
    said = without_system(prompt)
    if not history or same_turns(history, said[: len(history)]):
        return prompt
    return behind(history, prompt)


def _earlier_turns(history: Any, fields: frozenset[str]) -> list[dict] | None:
    """The turns of LLaMA-Factory's ``history``, [[question, answer], ...], or messages; None of a column that holds
    something else."""
    if history is None:
        return []
    pairs = from_json_text(history)
    if not isinstance(pairs, list):
        return None
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        named = all(
            isinstance(turn, dict) and any(isinstance(turn.get(key), str) for key in ROLE_KEYS)
            for turn in pairs
        )
        return message_list(history, None, fields) if named else None
    texts = [text for pair in pairs for text in pair]
    if not all(isinstance(text, str) or text is None for text in texts):
        return None
    turns = zip(("user", "assistant") * len(pairs), texts, strict=True)
    return [{"role": role, "content": text} for role, text in turns if text]


def _without_answer(row: dict, conversation: list[dict], fields: frozenset[str]) -> list[dict]:
    """The conversation without a last turn that repeats one of the two answers."""
    if (
        len(conversation) < 2 or conversation[-1]["role"] == "user"
    ):  # a row with such an answer is dropped anyway
        return conversation
    for side in (row["chosen"], row["rejected"]):
        answer = message_list(side, "assistant", fields)
        answer = answer or [{"role": "assistant", "content": text_of(side) or ""}]
        if same_turn(conversation[-1], answer[-1]):
            return conversation[:-1]
    return conversation
