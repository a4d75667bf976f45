"""Each row format is recognised by content, converted, and refused with a reason where it is odd."""

import json

import pytest

from dpo_core.contract.drops import RowDropped
from dpo_core.data.chat_template import Renderer
from dpo_core.data.formats import rename_columns, to_pair
from dpo_core.data.messages import prompt_key
from dpo_core.data.named_templates import NAMED_TEMPLATES
from tests.tiny_models import make_tokenizer

USER = {"role": "user", "content": "Hi?"}
GOOD, BAD = {"role": "assistant", "content": "Yes."}, {"role": "assistant", "content": "No."}
SHARE_USER = {"from": "human", "value": "Hi?"}


def _parts(row):
    name, pair = to_pair(row)
    assert pair.chosen[:-1] == pair.rejected[:-1] == pair.prompt
    return name, pair.prompt, pair.chosen[-1]["content"], pair.rejected[-1]["content"]


EXPECTED_ROWS = {
    "open-instruct": ("messages", {"chosen": [USER, GOOD], "rejected": [USER, BAD], "id": "x"}),
    "ultrafeedback": (
        "messages",
        {
            "prompt": "Hi?",
            "prompt_id": "9",
            "chosen": [USER, GOOD],
            "rejected": [USER, BAD],
            "messages": [USER, GOOD],
            "score_chosen": 8.0,
            "score_rejected": None,
        },
    ),
    "prompt repeated as messages": (
        "messages",
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ),
    "json text of messages": (
        "messages",
        {"chosen": json.dumps([USER, GOOD]), "rejected": json.dumps([USER, BAD])},
    ),
    "wrapped messages": (
        "messages",
        {"chosen": {"messages": [USER, GOOD]}, "rejected": {"messages": [USER, BAD]}},
    ),
    "from and value inside": (
        "messages",
        {
            "chosen": [SHARE_USER, {"from": "gpt", "value": "Yes."}],
            "rejected": [SHARE_USER, {"from": "gpt", "value": "No."}],
        },
    ),
    "text parts": (
        "messages",
        {
            "chosen": [{"role": "user", "content": [{"type": "text", "text": "Hi?"}]}, GOOD],
            "rejected": [USER, BAD],
        },
    ),
    "blanks differ in the prompt": (
        "messages",
        {"chosen": [USER, GOOD], "rejected": [{"role": "user", "content": "Hi? \n"}, BAD]},
    ),
    "explicit messages": ("prompt_messages", {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}),
    "explicit, answers as objects": ("prompt_messages", {"prompt": [USER], "chosen": GOOD, "rejected": BAD}),
    "text prompt, answers as messages": (
        "prompt_messages",
        {"prompt": "Hi?", "chosen": [GOOD], "rejected": [BAD]},
    ),
    "answers without role": (
        "prompt_messages",
        {"prompt": "Hi?", "chosen": {"content": "Yes."}, "rejected": {"content": "No."}},
    ),
    "explicit text": ("prompt_text", {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}),
    "answers in lists of one": ("prompt_text", {"prompt": "Hi?", "chosen": ["Yes."], "rejected": ["No."]}),
    "question column": (
        "prompt_text",
        {"question": "Hi?", "chosen": "Yes.", "rejected": "No.", "system": None},
    ),
    "hh-rlhf": (
        "hh_rlhf",
        {"chosen": "\n\nHuman: Hi?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Hi?\n\nAssistant: No.\n"},
    ),
    "hh-rlhf prompt apart": (
        "hh_rlhf",
        {"prompt": "\n\nHuman: Hi?\n\nAssistant:", "chosen": " Yes.", "rejected": " No."},
    ),
    "hh-rlhf prompt apart, marker repeated": (
        "hh_rlhf",
        {"prompt": "\n\nHuman: Hi?", "chosen": "\n\nAssistant: Yes.", "rejected": "\n\nAssistant: No."},
    ),
    "sharegpt": (
        "sharegpt",
        {
            "conversations": [SHARE_USER],
            "chosen": {"from": "gpt", "value": "Yes."},
            "rejected": {"from": "gpt", "value": "No."},
        },
    ),
    "sharegpt, answers in lists": (
        "sharegpt",
        {
            "conversations": [SHARE_USER],
            "chosen": [{"from": "gpt", "value": "Yes."}],
            "rejected": [{"from": "gpt", "value": "No."}],
            "system": "",
        },
    ),
    "sharegpt, answers as text": (
        "sharegpt",
        {"conversations": [SHARE_USER], "chosen": "Yes.", "rejected": "No."},
    ),
    "sharegpt, conversation ends with chosen": (
        "sharegpt",
        {
            "conversations": [SHARE_USER, {"from": "gpt", "value": "Yes."}],
            "chosen": {"from": "gpt", "value": "Yes."},
            "rejected": {"from": "gpt", "value": "No."},
        },
    ),
    "conversation under messages": ("sharegpt", {"messages": [USER], "chosen": GOOD, "rejected": BAD}),
}


@pytest.mark.parametrize("case", EXPECTED_ROWS)
def test_every_format_gives_the_same_pair(case):
    name, row = EXPECTED_ROWS[case]
    assert _parts(row) == (name, [USER], "Yes.", "No.")


def test_multi_turn_hh_keeps_turns_and_inner_text():
    before = "\n\nHuman: a\n\nline\n\nAssistant: b\n\nHuman: c: d"
    _, prompt, chosen, _ = _parts(
        {"chosen": before + "\n\nAssistant: e", "rejected": before + "\n\nAssistant: f"}
    )
    assert [(turn["role"], turn["content"]) for turn in prompt] == [
        ("user", "a\n\nline"),
        ("assistant", "b"),
        ("user", "c: d"),
    ]
    assert chosen == "e"


def test_answer_text_keeps_its_blanks():
    _, _, chosen, _ = _parts({"prompt": "Hi?", "chosen": " Yes. \n", "rejected": "No."})
    assert chosen == " Yes. \n"


@pytest.mark.parametrize(
    "answers",
    [
        ('{"text": "a"}', '{"text": "b"}'),
        ("[1]", "[2]"),
        ("[not json", "{neither"),
        ('[{"role": "assistant", "content": "a"}]', "plain"),
    ],
)
def test_an_answer_that_is_json_stays_text(answers):
    chosen, rejected = answers
    assert _parts({"prompt": "Hi?", "chosen": chosen, "rejected": rejected}) == (
        "prompt_text",
        [USER],
        *answers,
    )


def test_system_prompts_stand_first():
    system = {"role": "system", "content": "Be brief."}
    beside = _parts({"system": "Be brief.", "prompt": "Hi?", "chosen": "Yes.", "rejected": "No."})
    inside = _parts({"chosen": [system, USER, GOOD], "rejected": [system, USER, BAD], "system": "Be brief."})
    as_prompt = _parts({"prompt": [system], "chosen": [USER, GOOD], "rejected": [USER, BAD]})
    assert beside[1] == inside[1] == as_prompt[1] == [system, USER]


def test_alpaca_style_input_joins_the_instruction():
    _, prompt, _, _ = _parts({"instruction": "Add.", "input": "1 2", "chosen": "3", "rejected": "4"})
    assert prompt == [{"role": "user", "content": "Add.\n1 2"}]
    about = {"input": "A text.", "chosen": "3", "rejected": "4"}
    for row, said in (
        ({"question": "Who?"}, "Who?\nA text."),
        ({"query": "Who? A text."}, "Who? A text."),
        ({"prompt": "Who?"}, "Who?"),
        ({"instruction": "Read: A text.", "prompt": None}, "Read: A text.\nA text."),
    ):
        assert _parts({**row, **about})[1] == [{"role": "user", "content": said}]


def test_function_calls_and_observations_become_tool_turns():
    call = {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'}
    tools = '[{"name": "add", "parameters": {}}]'
    _, pair = to_pair(
        {
            "conversations": [SHARE_USER, call, {"from": "observation", "value": "2"}],
            "tools": tools,
            "chosen": {"from": "gpt", "value": "2"},
            "rejected": {"from": "gpt", "value": "3"},
        }
    )
    assert pair.prompt[1]["tool_calls"] == [
        {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    ]
    assert pair.prompt[2] == {"role": "tool", "content": "2"}
    assert pair.tools == [{"type": "function", "function": {"name": "add", "parameters": {}}}]


@pytest.mark.parametrize("tools", [None, "", "[]", [], "  "])
def test_no_tools(tools):
    assert to_pair({"prompt": "Hi?", "chosen": "Yes.", "rejected": "No.", "tools": tools})[1].tools is None


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([{"name": "lower_case", "args": None}], ({"name": "lower_case"},)),
        ('[{"name": "max_words", "limit": 5}]', ({"name": "max_words", "limit": 5},)),
        ({"name": "lower_case"}, ({"name": "lower_case"},)),
        ([{"name": "detectable_format:title", "kwargs": {}}], ()),
        ([{"name": "haiku"}], ()),
        (["answer in lower case"], ()),
        (None, ()),
        ("free text", ()),
    ],
)
def test_constraints_are_carried_where_they_are_named(column, expected):
    row = {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No.", "constraints": column}
    assert to_pair(row)[1].constraints == expected


@pytest.mark.parametrize(
    "column",
    [
        '[{"name": "max_words", "n": 5}]',
        [{"name": "max_words", "limit": "5"}],
        [{"name": "no_commas"}, {"name": "haiku"}],
        {"name": "max_word", "limit": 5},
    ],
)
def test_a_constraint_that_no_answer_could_be_held_to_is_named_before_anything_is_trained(column):
    with pytest.raises(RowDropped) as caught:
        to_pair({"prompt": "Hi?", "chosen": "Yes.", "rejected": "No.", "constraints": column})
    assert (caught.value.reason, caught.value.format) == ("bad_constraints", "prompt_text")


HH = "\n\nHuman: Hi?\n\nAssistant:"
ODD_ROWS = {
    "a list": ("not_a_preference_row", [1, 2]),
    "null": ("not_a_preference_row", None),
    "no rejected": ("not_a_preference_row", {"prompt": "Hi?", "chosen": "Yes."}),
    "rejected is null": ("not_a_preference_row", {"prompt": "Hi?", "chosen": "Yes.", "rejected": None}),
    "numbers": ("not_a_preference_row", {"prompt": "Hi?", "chosen": 1, "rejected": 2}),
    "text without prompt": ("not_a_preference_row", {"chosen": "Yes.", "rejected": "No."}),
    "messages against text": ("not_a_preference_row", {"chosen": [USER, GOOD], "rejected": "No."}),
    "an image column": (
        "not_text",
        {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No.", "images": ["a.jpg"]},
    ),
    "an image": (
        "not_text",
        {
            "chosen": [{"role": "user", "content": [{"type": "image", "image": "x"}]}, GOOD],
            "rejected": [USER, BAD],
        },
    ),
    "empty list": ("not_a_preference_row", {"prompt": "Hi?", "chosen": [], "rejected": []}),
    "ends with the user": (
        "last_turn_not_assistant",
        {"chosen": [USER, GOOD, USER], "rejected": [USER, BAD, USER]},
    ),
    "hh ends with the user": (
        "last_turn_not_assistant",
        {"chosen": HH + " a\n\nHuman: b", "rejected": HH + " a"},
    ),
    "other prompts": (
        "prompt_mismatch",
        {"chosen": [USER, GOOD], "rejected": [{"role": "user", "content": "Ho?"}, BAD]},
    ),
    "other number of turns": (
        "prompt_mismatch",
        {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, BAD]},
    ),
    "hh with other prompts": (
        "prompt_mismatch",
        {"chosen": HH + " a", "rejected": "\n\nHuman: Ho?\n\nAssistant: b"},
    ),
    "no prompt": ("empty_prompt", {"chosen": [GOOD], "rejected": [BAD]}),
    "blank prompt": ("empty_prompt", {"prompt": " \n", "chosen": "Yes.", "rejected": "No."}),
    "system alone": (
        "empty_prompt",
        {"prompt": [{"role": "system", "content": "S"}], "chosen": [GOOD], "rejected": [BAD]},
    ),
    "empty chosen": ("empty_answer", {"prompt": "Hi?", "chosen": " ", "rejected": "No."}),
    "null content": (
        "empty_answer",
        {"chosen": [USER, {"role": "assistant", "content": None}], "rejected": [USER, BAD]},
    ),
    "hh without answer": ("empty_answer", {"chosen": HH, "rejected": HH + " No."}),
    "identical": ("identical_pair", {"prompt": "Hi?", "chosen": "Yes.", "rejected": "Yes. "}),
    "a system prompt that is a number": (
        "bad_system",
        {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No.", "system": 7},
    ),
    "a system prompt of other things": (
        "bad_system",
        {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No.", "system": {"style": "brief"}},
    ),
    "a system prompt that a user says": (
        "bad_system",
        {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No.", "system": [USER]},
    ),
    "another system prompt inside": (
        "bad_system",
        {
            "system": "Be brief.",
            "chosen": [{"role": "system", "content": "Be long."}, USER, GOOD],
            "rejected": [{"role": "system", "content": "Be long."}, USER, BAD],
        },
    ),
    "tools are text": (
        "bad_tools",
        {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No.", "tools": "a calculator"},
    ),
}


@pytest.mark.parametrize("case", ODD_ROWS)
def test_odd_rows_are_dropped_with_a_reason(case):
    reason, row = ODD_ROWS[case]
    with pytest.raises(RowDropped) as dropped:
        to_pair(row)
    assert dropped.value.reason == reason


def test_columns_are_renamed_from_theirs_to_ours():
    row = rename_columns(
        {"q": "Hi?", "winner": "Yes.", "loser": "No.", "conversations": [USER, USER]},
        {"prompt": "q", "chosen": "winner", "rejected": "loser"},
    )
    assert _parts(row) == ("prompt_text", [USER], "Yes.", "No.")


ROW_OF_TEXTS = {"prompt": "a", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {}),
        ("", {}),
        ({"enable_thinking": False, "other": None}, {"enable_thinking": False}),
        ('{"enable_thinking": true}', {"enable_thinking": True}),
    ],
)
def test_a_row_has_variables_for_the_template(given, expected):
    assert to_pair({**ROW_OF_TEXTS, "chat_template_kwargs": given})[1].template_kwargs == expected


@pytest.mark.parametrize("given", [["a"], 1, "no", '["a"]', {"tools": []}, {"messages": []}, {"no name": 1}])
def test_other_variables_are_a_reason(given):
    with pytest.raises(RowDropped) as dropped:
        to_pair({**ROW_OF_TEXTS, "chat_template_kwargs": given})
    assert dropped.value.reason == "bad_template_kwargs"


SYSTEM = {"role": "system", "content": "Be brief."}
SYSTEM_FORMS = {
    "a text": "Be brief.",
    "a message": SYSTEM,
    "a message without a role": {"content": "Be brief."},
    "ShareGPT's message": {"from": "system", "value": "Be brief."},
    "a list of messages": [SYSTEM],
    "a list of texts": ["Be brief."],
    "JSON text of messages": '[{"role": "system", "content": "Be brief."}]',
    "JSON text of texts": '["Be brief."]',
    "content in parts": {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
    "a developer's message": {"role": "developer", "content": "Be brief."},
}


@pytest.mark.parametrize("column", ["system", "system_prompt", "system_message", "system_instruction"])
@pytest.mark.parametrize("form", SYSTEM_FORMS)
def test_a_system_prompt_beside_the_conversation_stands_first_in_any_form(form, column):
    for row in (
        {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
        {"prompt": [SYSTEM, USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ):
        assert _parts({column: SYSTEM_FORMS[form], **row})[1] == [SYSTEM, USER]


def test_a_blank_system_turn_gives_way_to_the_column():
    """Columnar and ShareGPT sets have an empty one in every conversation."""
    blank = {"role": "system", "content": " "}
    row = {"chosen": [blank, USER, GOOD], "rejected": [blank, USER, BAD], "system": "Be brief."}
    assert _parts(row)[1] == [SYSTEM, USER]
    assert _parts({**row, "system": None})[1] == [blank, USER]


def test_several_system_texts_are_one_turn():
    for system in (["Be brief.", "Be kind."], [SYSTEM, {"role": "system", "content": "Be kind."}]):
        _, prompt, *_ = _parts({"system": system, "prompt": "Hi?", "chosen": "Yes.", "rejected": "No."})
        assert prompt == [{"role": "system", "content": "Be brief.\n\nBe kind."}, USER]


@pytest.mark.parametrize(
    "system", [None, "", " \n", [], {}, [""], {"content": None}, {"role": "system", "content": ""}]
)
def test_no_system_prompt(system):
    assert _parts({"system": system, "prompt": "Hi?", "chosen": "Yes.", "rejected": "No."})[1] == [USER]


def test_a_system_prompt_of_the_prompt_column_is_not_lost_beside_whole_conversations():
    """Chosen and rejected hold the prompt themselves, though without its system turn."""
    row = {"prompt": [SYSTEM, USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]}
    assert _parts(row)[1] == [SYSTEM, USER]


@pytest.mark.parametrize(
    "field", ["reasoning_content", "reasoning", "thinking", "tool_plan", "function_calls", "name"]
)
def test_a_field_that_templates_read_is_kept_and_compared(field):
    """It makes another answer, another prompt, another key for the split."""
    said = {"role": "assistant", "content": "4", field: "add them"}
    other = {"role": "assistant", "content": "4", field: "guess"}
    pair = to_pair({"chosen": [USER, said], "rejected": [USER, other]})[1]
    assert (pair.chosen[-1], pair.rejected[-1]) == (said, other)
    with pytest.raises(RowDropped, match="identical_pair"):
        to_pair({"chosen": [USER, said], "rejected": [USER, {**said, field: " add them\n", "score": 3}]})
    with pytest.raises(RowDropped, match="prompt_mismatch"):
        to_pair({"chosen": [USER, said, USER, GOOD], "rejected": [USER, other, USER, BAD]})
    plain = {"role": "assistant", "content": "4", field: None}
    keys = {
        prompt_key(to_pair({"chosen": [USER, one, USER, GOOD], "rejected": [USER, one, USER, BAD]})[1].prompt)
        for one in (said, other, plain)
    }
    assert len(keys) == 3
    assert prompt_key([USER, {"role": "assistant", "content": "4"}, USER]) in keys


def calling(number: int) -> dict:
    function = {"name": "add", "arguments": {"a": number}}
    return {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}


ONE_DIFFERENCE = {
    "functions": ([{**SYSTEM, "functions": "[1]"}], [{**SYSTEM, "functions": "[2]"}]),
    "some functions or none": ([{**SYSTEM, "functions": "[1]"}], [SYSTEM]),
    "calls": ([USER, calling(1)], [USER, calling(2)]),
    "a call or none": ([USER, calling(1)], [USER, {"role": "assistant", "content": ""}]),
    "whose a result is": (
        [USER, calling(1), {"role": "environment", "content": "2"}],
        [USER, calling(1), {"role": "tool", "content": "2"}],
    ),
}


@pytest.mark.parametrize(("one", "other"), ONE_DIFFERENCE.values(), ids=ONE_DIFFERENCE)
def test_what_a_history_says_beside_its_texts_is_compared(one, other):
    """All texts are the same; the template names functions, calls and the role environment."""
    fields = Renderer(make_tokenizer(NAMED_TEMPLATES["olmo"])).message_fields

    def pair(history: list, other_history: list):
        row = {"chosen": [*history, USER, GOOD], "rejected": [*other_history, USER, BAD]}
        return to_pair(row, fields)[1]

    with pytest.raises(RowDropped, match="prompt_mismatch"):
        pair(one, other)
    assert prompt_key(pair(one, one).prompt) != prompt_key(pair(other, other).prompt)


def test_an_answer_may_be_reasoning_or_calls_alone():
    said = {"role": "assistant", "function_calls": "weather()"}
    pair = to_pair(
        {"chosen": [USER, said], "rejected": [USER, {"role": "assistant", "content": None, "thinking": "hm"}]}
    )[1]
    assert pair.chosen[-1] == {"role": "assistant", "content": "", "function_calls": "weather()"}
    assert pair.rejected[-1] == {"role": "assistant", "content": "", "thinking": "hm"}


def test_the_older_form_of_a_call_is_a_call():
    old = {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 1}'}}
    pair = to_pair({"chosen": [USER, old], "rejected": [USER, BAD]})[1]
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    assert pair.chosen[-1] == {"role": "assistant", "content": "", "tool_calls": [call]}


def test_two_columns_with_different_system_prompts_drop_the_row_unless_one_is_named():
    row = {**ROW_OF_TEXTS, "system": "Be kind.", "system_prompt": "Be rude."}
    with pytest.raises(RowDropped, match="bad_system"):
        to_pair(row)
    assert to_pair({**row, "system_prompt": [" Be kind. "]})[1].prompt[0]["content"] == "Be kind."
    named = rename_columns(row, {"system": "system_prompt"})
    assert to_pair(named)[1].prompt[0]["content"] == "Be rude."
