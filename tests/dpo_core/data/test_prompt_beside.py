"""Prompts, calls and functions in the forms that people give them: used whole, or the row is dropped with a reason."""

import json

import pytest

from dpo_core.contract.drops import RowDropped
from dpo_core.data.formats import rename_columns, to_pair
from dpo_core.data.python_text import MAX_CHARACTERS, of_python_text

SYSTEM = {"role": "system", "content": "Be brief."}
GOOD, BAD = {"role": "assistant", "content": "Yes."}, {"role": "assistant", "content": "No."}
TEXTS = {"prompt": "C", "chosen": "Yes.", "rejected": "No."}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


A, B, C = user("A"), {"role": "assistant", "content": "B"}, user("C")
LAST = {"chosen": [C, GOOD], "rejected": [C, BAD]}


@pytest.mark.parametrize("column", ["prompt", "conversations", "messages"])
@pytest.mark.parametrize("form", [list, json.dumps, str])
def test_sides_may_be_the_last_exchange_alone(column, form):
    """The turns before it stand in the prompt's own column."""
    assert to_pair({column: form([A, B, C]), **LAST})[1].prompt == [A, B, C]
    assert to_pair({column: form([SYSTEM, A, B, C]), **LAST})[1].prompt == [SYSTEM, A, B, C]
    assert to_pair({column: form([A, B, C]), "system": "Be brief.", **LAST})[1].prompt == [SYSTEM, A, B, C]


def test_a_system_prompt_of_sides_that_are_the_last_exchange_is_the_conversations():
    own = {side: [SYSTEM, *turns] for side, turns in LAST.items()}
    for prompt in ([A, B, C], [SYSTEM, A, B, C]):
        assert to_pair({"prompt": prompt, **own})[1].prompt == [SYSTEM, A, B, C]
    with pytest.raises(RowDropped, match="bad_system"):
        to_pair({"prompt": [{**SYSTEM, "content": "Be long."}, A, B, C], **own})


def test_in_hh_rlhf_too():
    row = {"prompt": "\n\nHuman: A\n\nAssistant: B\n\nHuman: C"}
    sides = {"chosen": "\n\nHuman: C\n\nAssistant: Yes.", "rejected": "\n\nHuman: C\n\nAssistant: No."}
    assert to_pair({**row, **sides})[1].prompt == [A, B, C]


def test_another_conversation_is_none_that_goes_before():
    assert to_pair({"prompt": [A, B, user("D")], **LAST})[1].prompt == [C]
    assert to_pair({"prompt": [A, B], **LAST})[1].prompt == [C]


def hh(*turns: dict) -> str:
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in turns)


WHOLE = {side: [A, B, *turns] for side, turns in LAST.items()}
IN_HH = {side: hh(*turns) for side, turns in WHOLE.items()}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"function": {"name": "f", "arguments": {"x": "Oslo"}}}],
}
PASSED_BY = {
    "another text": {"prompt": "D"},
    "a text with more around it": {"prompt": "Examples. C"},
    "another question": {"question": "D"},
    "another turn": {"prompt": [user("D")]},
    "an answer of its own before": {"prompt": [A, {**B, "content": "b2"}, C]},
    "an earlier exchange": {"prompt": [user("X"), {**B, "content": "Y"}]},
    "a call": {"prompt": [A, CALL, C]},
    "turns in hh-rlhf's form": {"prompt": "\n\nHuman: D\n\nAssistant:"},
    "another conversation": {"conversations": [{"from": "human", "value": "D"}]},
    "another system turn before another question": {"prompt": [SYSTEM, user("D"), SYSTEM]},
    "a history": {"history": [["D", "E"]]},
    "a history beside the prompt": {"prompt": "C", "history": [["D", "E"]]},
    "a message without a role": {"prompt": [{"text": "D"}]},
    "a picture": {"prompt": [{"role": "user", "content": [{"type": "image"}]}]},
    "a picture among messages": {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
}
HELD = {
    "none": {},
    "nothing in it": {"prompt": None, "question": "", "history": []},
    "the first question": {"prompt": "A"},
    "the last question": {"prompt": "C"},
    "its words with other blanks": {"prompt": " c\n"},
    "the turns": {"prompt": [A, B, C]},
    "the last turn": {"prompt": [C]},
    "turns in hh-rlhf's form": {"prompt": hh(A, B, C) + "\n\nAssistant:"},
    "all texts as one": {"prompt": "A\n\nB\n\nC"},
    "a number": {"prompt": 7},
    "the conversation with one of the answers": {"messages": [A, B, C, BAD]},
    "the conversation with a third answer": {"conversations": [A, B, C, {**BAD, "content": "Maybe."}]},
    "the history": {"prompt": "C", "history": [["A", "B"]]},
    "the system prompt": {"prompt": [SYSTEM]},
}


@pytest.mark.parametrize("sides", [WHOLE, IN_HH], ids=["messages", "hh_rlhf"])
@pytest.mark.parametrize("beside", PASSED_BY.values(), ids=PASSED_BY)
def test_a_prompt_beside_whole_conversations_that_neither_holds_is_told_of(beside, sides):
    made = to_pair({**sides, **beside})[1]
    assert made.prompt[-3:] == [A, B, C]
    assert made.prompt_passed_by


@pytest.mark.parametrize("sides", [WHOLE, IN_HH], ids=["messages", "hh_rlhf"])
@pytest.mark.parametrize("beside", HELD.values(), ids=HELD)
def test_a_prompt_that_the_conversations_hold_is_no_news(beside, sides):
    assert not to_pair({**sides, **beside})[1].prompt_passed_by


def test_a_prompt_that_stands_before_the_answers_is_not_passed_by():
    for row in (TEXTS, {**LAST, "prompt": [A, B, C]}, {"prompt": "C", "chosen": [GOOD], "rejected": [BAD]}):
        assert not to_pair(row)[1].prompt_passed_by
    for sides in (WHOLE, IN_HH):
        assert to_pair({**sides, "prompt": [SYSTEM]})[1].prompt == [SYSTEM, A, B, C]
    system_and_more = {"prompt": "Be brief. C", "system": "Be brief.", **LAST}
    assert not to_pair(system_and_more)[1].prompt_passed_by


D = user("D")
AFTER_C = [TEXTS, {"prompt": [C], "chosen": [GOOD], "rejected": [BAD]}, {"prompt": "C", **LAST}]
UNREAD = {
    "a question without its answer": {"history": [["A"]]},
    "pairs under other names": {"history": [{"q": "A", "a": "B"}]},
    "numbers": {"history": [[1, 2]]},
    "an object": {"history": {"A": "B"}},
    "a text": {"history": "A -> B"},
    "messages that do not end with the prompt": {"messages": [A, B]},
    "messages with another question": {"messages": [D, GOOD]},
    "messages with a further question": {"messages": [C, D]},
    "a conversation with another question": {"conversations": [A, B, D]},
    "a history before a conversation": {"conversations": [C], "history": [["A", "B"]]},
    "a picture": {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
}
READ = {
    "a history": {"history": [["A", "B"]]},
    "one of nothing": {"history": [[None, None]]},
    "the prompt once more": {"history": "C"},
    "no value": {"history": 0, "messages": None, "conversations": None},
    "the prompt's conversation": {"messages": [A, B, C]},
    "it, answered": {"messages": [A, B, C, GOOD]},
    "the prompt, answered by somebody else": {"messages": [C, B]},
    "a conversation that ends with it": {"conversations": [A, B, C]},
    "one of code": {"messages": "print('C')"},
}


@pytest.mark.parametrize("sides", AFTER_C, ids=["text", "messages", "whole"])
@pytest.mark.parametrize("beside", UNREAD.values(), ids=UNREAD)
def test_what_a_prompt_of_its_own_leaves_out_of_other_columns_is_told_of(beside, sides):
    assert to_pair({**sides, **beside})[1].prompt_passed_by


@pytest.mark.parametrize("sides", AFTER_C, ids=["text", "messages", "whole"])
@pytest.mark.parametrize("beside", READ.values(), ids=READ)
def test_columns_that_say_what_stands_before_the_answers_are_no_news(beside, sides):
    assert not to_pair({**sides, **beside})[1].prompt_passed_by


@pytest.mark.parametrize("prompt", ["C", [C], [SYSTEM, C]])
@pytest.mark.parametrize("history", [[["A", "B"]], [A, B], json.dumps([["A", "B"]]), json.dumps([A, B])])
def test_a_history_stands_before_a_prompt_of_either_form(prompt, history):
    system = [SYSTEM] if prompt == [SYSTEM, C] else []
    made = to_pair({**TEXTS, "prompt": prompt, "history": history})[1]
    assert made.prompt == [*system, A, B, C]
    whole = to_pair({**TEXTS, "prompt": [*system, A, B, C], "history": history})[1]
    assert whole.prompt == made.prompt  # not twice


@pytest.mark.parametrize(
    "odd", [[{"text": "A"}], [{"role": 3, "content": "A"}], [{"content": [{"type": "image"}]}], "A"]
)
def test_odd_columns_beside_a_row_that_does_without_them_cost_nothing(odd):
    for column in ("history", "messages"):
        assert to_pair({**TEXTS, column: odd})[1].prompt == [C]
        assert to_pair({**LAST, column: odd})[1].prompt == [C]
    assert to_pair({**LAST, "conversations": odd})[1].prompt == [C]


def test_a_history_without_an_answer_keeps_its_question():
    assert to_pair({**TEXTS, "history": [["A", "B"], ["D", None]]})[1].prompt == [A, B, user("D"), C]


def test_messages_beside_a_prompt_of_text_are_the_whole_of_it_where_they_end_with_it():
    for messages in ([SYSTEM, C], [SYSTEM, C, GOOD], [SYSTEM]):
        assert to_pair({**TEXTS, "messages": messages})[1].prompt == [SYSTEM, C]
    assert to_pair({**TEXTS, "messages": [A, B, C]})[1].prompt == [A, B, C]
    for messages in ([A, B], [C], [C, GOOD], "C", None):
        assert to_pair({**TEXTS, "messages": messages})[1].prompt == [C]


@pytest.mark.parametrize(
    "column", ["system_instructions", "system_text", "system_content", "systemPrompt", "sys_prompt"]
)
def test_a_system_prompt_by_another_name_is_one(column):
    assert to_pair({**TEXTS, column: "Be brief."})[1].prompt == [SYSTEM, C]


NUMPY = "[{'role': 'user', 'content': 'it\\'s'}\n {'role': 'assistant', 'content': \"a\\n{b}\"}]"


def test_messages_in_pythons_spelling_are_messages():
    """What becomes of lists in a CSV file; without commas it is numpy's."""
    row = {side: str([A, B, C, answer]) for side, answer in (("chosen", GOOD), ("rejected", BAD))}
    assert to_pair(row)[1].prompt == [A, B, C]
    assert to_pair({**TEXTS, "system": str(SYSTEM)})[1].prompt == [SYSTEM, C]
    assert of_python_text(NUMPY) == [
        {"role": "user", "content": "it's"},
        {"role": "assistant", "content": "a\n{b}"},
    ]


@pytest.mark.parametrize(
    "text",
    [
        "{'city': 'Oslo'}",
        "[{'role': 'user', 'content': f()}]",
        "[{'role': 'user', 'content'",
        "[{'content': " + "[" * 5000,
        "[{'role': " + "'" + "x" * MAX_CHARACTERS + "'}]",
    ],
)
def test_any_other_text_stays_text(text):
    assert of_python_text(text) == text
    assert to_pair({**TEXTS, "chosen": text})[1].chosen[-1]["content"] == text


def called(**call: object) -> dict:
    row = {"prompt": [A], "chosen": [{**GOOD, "tool_calls": [call]}], "rejected": [BAD]}
    return to_pair(row)[1].chosen[-1]["tool_calls"][0]["function"]


@pytest.mark.parametrize("name", ["arguments", "parameters", "args", "input", "kwargs"])
@pytest.mark.parametrize("form", [dict, json.dumps])
def test_arguments_are_kept_by_any_of_their_names(name, form):
    expected = {"name": "f", "arguments": {"city": "Oslo"}}
    given = {name: form({"city": "Oslo"})}
    assert called(name="f", id="c0", type="tool_call", **given) == expected
    assert called(function={"name": "f", **given}) == called(function={"name": "f"}, **given) == expected


def test_a_call_without_arguments_has_none_and_one_with_unknown_ones_is_no_call():
    assert called(name="f", id="c0", index=0) == {"name": "f", "arguments": {}}
    with pytest.raises(RowDropped, match="a tool call has no arguments but payload"):
        called(name="f", payload={"city": "Oslo"})


def test_calls_that_differ_in_arguments_of_another_name_are_two_answers():
    sides = (
        [{**GOOD, "content": "", "tool_calls": [{"name": "f", "args": {"c": c}}]}] for c in ("Oslo", "Rome")
    )
    pair = to_pair({"prompt": [A], **dict(zip(("chosen", "rejected"), sides, strict=True))})[1]
    assert pair.chosen[-1] != pair.rejected[-1]


def test_numbers_are_kept_where_texts_are():
    said = {**A, "name": 5, "tool_call_id": 0}
    assert to_pair({**TEXTS, "prompt": [said]})[1].prompt == [said]
    with pytest.raises(RowDropped, match="prompt_mismatch"):
        to_pair({"chosen": [said, GOOD], "rejected": [{**A, "name": 5}, BAD]})


WEATHER = {"name": "weather", "description": "d", "parameters": {}}


@pytest.mark.parametrize("form", [list, json.dumps])
def test_functions_of_a_column_are_tools(form):
    """OpenAI's older form."""
    tool = {"type": "function", "function": WEATHER}
    assert to_pair({**TEXTS, "functions": form([WEATHER])})[1].tools == [tool]
    inside = {**TEXTS, "prompt": {"messages": [C], "functions": form([WEATHER])}}
    assert to_pair(inside)[1].tools == [tool]
    assert to_pair({**TEXTS, "tools": [tool], "functions": form([WEATHER])})[1].tools == [tool]
    with pytest.raises(RowDropped, match="bad_tools"):
        to_pair({**TEXTS, "tools": [{**WEATHER, "name": "other"}], "functions": form([WEATHER])})
    named = rename_columns({**TEXTS, "mine": [tool], "functions": form([{"name": "x"}])}, {"tools": "mine"})
    assert to_pair(named)[1].tools == [tool]


@pytest.mark.parametrize("other", [None, "", "[]", "def f(): ...", ["f"], [{"code": "f"}], {"name": "f"}, 3])
def test_functions_of_another_kind_are_no_tools(other):
    assert to_pair({**TEXTS, "functions": other})[1].tools is None
