"""Raw row -> ``PreferencePair``. The format is recognised row by row, by content.

    messages         chosen and rejected are conversations, prompt inside (open-instruct, UltraFeedback binarized)
    prompt_messages  a prompt, chosen and rejected hold the answer as messages
    prompt_text      a prompt, chosen and rejected are text
    hh_rlhf          "\\n\\nHuman: ...\\n\\nAssistant: ..." strings, prompt inside or in `prompt`
    sharegpt         `conversations` beside chosen and rejected

As in open-instruct the prompt of a conversation is everything before its last turn. Text is kept as it is, except
that hh_rlhf turns lose the blanks around them, which belong to the markers.
"""

from typing import Any

from dpo_core.contract.drops import FormatName, RowDropped
from dpo_core.data.deep_json import TOO_DEEP
from dpo_core.data.half_characters import whole_pair
from dpo_core.data.json_text import is_nothing
from dpo_core.data.messages import NOTHING_ELSE, is_blank, same_turn, same_turns, wrapper
from dpo_core.data.pairs import PreferencePair
from dpo_core.data.prompt_beside import (
    CONVERSATION_COLUMNS,
    PROMPT_COLUMNS,
    behind,
    explicit_prompt,
    first_of,
    has_several,
    hh_turns,
    is_passed_by,
    messages_of,
    text_of,
    turns_before,
)
from dpo_core.data.repeated_names import SEVERAL_VALUES
from dpo_core.data.row_columns import (
    constraint_list,
    function_list,
    ifeval_constraints,
    template_arguments,
    tool_list,
)
from dpo_core.data.system_prompt import SYSTEM_COLUMNS, leading_system, system_beside, with_system

HOLD_PROMPT = ("messages", "hh_rlhf")  # formats whose sides may be whole conversations
MEDIA_COLUMNS = frozenset({"images", "image", "videos", "video", "audios", "audio"})
_SAID_COLUMNS = (*PROMPT_COLUMNS, *CONVERSATION_COLUMNS, "chosen", "rejected")
# By these names a row is recognised without a column map; no other column is looked at.
READ_COLUMNS = frozenset(
    {
        *(
            "chosen",
            "rejected",
            "messages",
            "input",
            "tools",
            "functions",
            "constraints",
            "chat_template_kwargs",
        ),
        *("instruction_id_list", "kwargs", "history"),
        *PROMPT_COLUMNS,
        *CONVERSATION_COLUMNS,
        *MEDIA_COLUMNS,
        *SYSTEM_COLUMNS,
    }
)


def rename_columns(row: dict, columns: dict[str, str]) -> dict:
    """Apply a source's column map (ours -> theirs). A prompt or a system prompt named there is the one, also in a row that
    has none, and columns of the usual names are passed by."""
    if not columns:
        return row
    found: set[str] = set()
    if "prompt" in columns:
        found = {*CONVERSATION_COLUMNS, *PROMPT_COLUMNS} - {columns["prompt"]}
    found |= set(SYSTEM_COLUMNS) if "system" in columns else set()
    found |= {"functions"} if "tools" in columns else set()
    kept = {name: value for name, value in row.items() if name not in found}
    return {**kept, **{ours: row.get(theirs) for ours, theirs in columns.items()}}


def to_pair(row: Any, fields: frozenset[str] = NOTHING_ELSE) -> tuple[FormatName, PreferencePair]:
    """Recognise a raw row and convert it; ``fields`` of its messages are kept beside the usual ones.

    Raises ``RowDropped`` with the reason and the format found so far.
    """
    if not isinstance(row, dict):
        raise RowDropped("not_a_preference_row", "the row is not an object")
    if dict in map(type, row.values()):
        _refuse_marked(row)
    name, chosen, rejected = _recognise(row, fields)
    try:
        system = system_beside(row, fields)
        chosen, rejected = with_system(system, chosen), with_system(system, rejected)
        _check(row, chosen, rejected)
        tools = _tools(row)
        constraints = constraint_list(row.get("constraints"))
        constraints += ifeval_constraints(row.get("instruction_id_list"), row.get("kwargs"))
        arguments = template_arguments(row.get("chat_template_kwargs"))
    except RowDropped as dropped:
        raise RowDropped(dropped.reason, dropped.detail, name) from None
    prompt = chosen[:-1]
    pair = PreferencePair(
        prompt=prompt,
        chosen=chosen,
        rejected=[*prompt, rejected[-1]],
        tools=tools,
        constraints=constraints,
        template_kwargs=arguments,
        prompt_passed_by=(name in HOLD_PROMPT or has_several(row)) and is_passed_by(row, prompt, fields),
    )
    return name, whole_pair(pair)


def _refuse_marked(row: dict) -> None:
    """Raise ``RowDropped`` where the reader put a mark in place of a column's value."""
    for column in sorted(READ_COLUMNS & row.keys()):
        if row[column] == TOO_DEEP:
            raise RowDropped("not_a_preference_row", f"{column} is {next(iter(TOO_DEEP))}")
        if row[column] == SEVERAL_VALUES:
            raise RowDropped("repeated_name", f"{column} holds {next(iter(SEVERAL_VALUES))}")


def _check(row: dict, chosen: list[dict], rejected: list[dict]) -> None:
    if any(row[name] and not is_nothing(row[name]) for name in MEDIA_COLUMNS.intersection(row)):
        raise RowDropped("not_text")
    if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        raise RowDropped("last_turn_not_assistant")
    if not same_turns(chosen[:-1], rejected[:-1]):
        raise RowDropped("prompt_mismatch")
    if all(is_blank(turn) or turn["role"] == "system" for turn in chosen[:-1]):
        raise RowDropped("empty_prompt")
    if is_blank(chosen[-1]) or is_blank(rejected[-1]):
        raise RowDropped("empty_answer")
    if same_turn(chosen[-1], rejected[-1]):
        raise RowDropped("identical_pair")


def _tools(row: dict) -> list[dict] | None:
    """The tools of a row, which may stand beside its messages: ``{"messages": [...], "tools": [...]}``. Raises
    ``RowDropped``."""
    holders = [row, *filter(None, [wrapper(row[name]) for name in _SAID_COLUMNS if name in row])]
    found = [tools for holder in holders if (tools := tool_list(holder.get("tools")))]
    found += [tools for holder in holders if (tools := function_list(holder.get("functions")))]
    if any(tools != found[0] for tools in found[1:]):
        raise RowDropped("bad_tools", "two places of the row hold different tools")
    return found[0] if found else None


def _recognise(row: dict, fields: frozenset[str]) -> tuple[FormatName, list[dict], list[dict]]:
    """The format's name and the two conversations, prompt included."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if chosen is None or rejected is None:
        missing = " and ".join(name for name in ("chosen", "rejected") if row.get(name) is None)
        raise RowDropped("not_a_preference_row", f"no {missing}")
    chosen_turns = messages_of(chosen, "assistant", fields)
    rejected_turns = messages_of(rejected, "assistant", fields)
    if chosen_turns is not None and rejected_turns is not None:
        return _from_messages(row, chosen_turns, rejected_turns, fields)
    if not (isinstance(chosen, str) and isinstance(rejected, str)) and (chosen_turns or rejected_turns):
        raise RowDropped("not_a_preference_row", "one answer is messages, the other is not")
    return _from_texts(row, text_of(chosen), text_of(rejected), fields)


def _from_messages(
    row: dict, chosen: list[dict], rejected: list[dict], fields: frozenset[str]
) -> tuple[FormatName, list[dict], list[dict]]:
    if _holds_prompt(chosen) and _holds_prompt(rejected) and not _goes_on(row, chosen, rejected, fields):
        if earlier := turns_before(row, chosen, rejected, fields):
            return "prompt_messages", behind(earlier, chosen), behind(earlier, rejected)
        before, system = _system_before(row, fields)
        if before and all(turn["role"] == "system" for turn in before):
            return "prompt_messages", with_system(system, chosen), with_system(system, rejected)
        chosen, rejected = with_system(system, chosen), with_system(system, rejected)
        return "messages", chosen, rejected
    name, prompt = explicit_prompt(row, fields)
    if prompt is None:
        if _holds_prompt(chosen) or _holds_prompt(rejected):
            raise RowDropped("prompt_mismatch", format="messages")
        raise RowDropped("empty_prompt", format="messages")
    return ("sharegpt" if name == "sharegpt" else "prompt_messages"), prompt + chosen, prompt + rejected


def _from_texts(
    row: dict, chosen: str | None, rejected: str | None, fields: frozenset[str]
) -> tuple[FormatName, list[dict], list[dict]]:
    if chosen is None or rejected is None:
        raise RowDropped("not_a_preference_row", "an answer is neither text nor messages")
    chosen_turns, rejected_turns = hh_turns(chosen), hh_turns(rejected)
    if chosen_turns and rejected_turns and chosen_turns[0]["role"] == rejected_turns[0]["role"] == "user":
        earlier = turns_before(row, chosen_turns, rejected_turns, fields) or _system_before(row, fields)[1]
        return "hh_rlhf", [*earlier, *chosen_turns], [*earlier, *rejected_turns]
    name, prompt = explicit_prompt(row, fields)
    if prompt is None:
        raise RowDropped("not_a_preference_row", "answers are text and there is no prompt")
    if name == "hh_rlhf":
        chosen, rejected = (text.strip().removeprefix("Assistant:").strip() for text in (chosen, rejected))
    with_chosen, with_rejected = (
        [*prompt, {"role": "assistant", "content": answer}] for answer in (chosen, rejected)
    )
    return name, with_chosen, with_rejected


def _system_before(row: dict, fields: frozenset[str]) -> tuple[list[dict] | None, list[dict]]:
    """The turns of the prompt's column, None where it holds none, and the system's of them."""
    try:
        before = messages_of(first_of(row, PROMPT_COLUMNS), None, fields)
        return before, leading_system(before or ())
    except RowDropped:  # of a column that the row does without; it is told of as passed by
        return None, []


def _holds_prompt(turns: list[dict]) -> bool:
    return any(turn["role"] not in ("assistant", "system") for turn in turns[:-1])


def _goes_on(row: dict, chosen: list[dict], rejected: list[dict], fields: frozenset[str]) -> bool:
    """Whether both sides begin with what the assistant does (a call, its result by any word, an answer) behind a prompt of
    their own column."""
    for turns in (chosen, rejected):
        if next(turn["role"] for turn in turns if turn["role"] != "system") == "user":
            return False
    prompt = explicit_prompt(row, fields)[1]
    return prompt is not None and not any(same_turn(prompt[-1], turn) for turn in chosen[:-1])
