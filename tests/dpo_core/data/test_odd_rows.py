"""Rows as people have them, of which nothing may vanish: trajectories, calls of nulls, parts, wrappers, halves."""

import json
from pathlib import Path

import pytest

from dpo_core.contract.drops import RowDropped
from dpo_core.data.formats import rename_columns, to_pair
from dpo_core.data.tokenize import PairTokenizer, TokenizeRules
from tests.tiny_models import CHATML, make_tokenizer

USER = {"role": "user", "content": "Hi?"}
GOOD, BAD = {"role": "assistant", "content": "Yes."}, {"role": "assistant", "content": "No."}
SYSTEM = {"role": "system", "content": "Be brief."}
TEXTS = {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}
TOOL = {"type": "function", "function": {"name": "add"}}
ADD = {"type": "function", "function": {"name": "add", "arguments": {}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [ADD]}
RESULT = {"role": "tool", "content": "2"}


def test_a_prompt_is_not_lost_where_both_sides_begin_with_calls():
    """TRL's form: the sides are what follows the prompt, also where that is a call, its result and the answer."""
    row = {"prompt": [SYSTEM, USER], "chosen": [CALL, RESULT, GOOD], "rejected": [CALL, RESULT, BAD]}
    pair = to_pair(row)[1]
    assert pair.prompt == [SYSTEM, USER, CALL, RESULT]
    assert (pair.chosen[-1], pair.rejected[-1]) == (GOOD, BAD)
    in_text = to_pair({**row, "prompt": "Hi?", "system": "Be brief."})[1]
    shared = to_pair(
        {**row, "prompt": None, "conversations": [{"from": "human", "value": "Hi?"}], "system": "Be brief."}
    )[1]
    assert in_text.prompt == shared.prompt == pair.prompt


@pytest.mark.parametrize(
    "role", ["tool", "environment", "ipython", "observation", "tool_response", "results"]
)
def test_a_prompt_is_not_lost_where_both_sides_begin_with_a_result(role):
    """Whatever it is called, and whether or not the template knows the word."""
    call, result = {**CALL, "role": "assistant"}, {"role": role, "content": "18 degrees"}
    row = {"prompt": [USER, call], "chosen": [result, GOOD], "rejected": [result, BAD]}
    for fields in (frozenset(), frozenset({f"role={role}"})):
        prompt = to_pair(row, fields)[1].prompt
        assert [turn["role"] for turn in prompt[:2]] == ["user", "assistant"]
        assert prompt[2]["content"] == "18 degrees"


def test_more_turns_behind_a_prompt_are_behind_it():
    more = {"role": "user", "content": "And?"}
    row = {"prompt": "Hi?", "chosen": [GOOD, more, GOOD], "rejected": [GOOD, more, BAD]}
    assert to_pair(row)[1].prompt == [USER, GOOD, more]


def test_a_conversation_that_an_assistant_begins_holds_its_prompt_where_it_says_it():
    begun = [GOOD, USER]
    row = {"prompt": "Hi?", "chosen": [*begun, GOOD], "rejected": [*begun, BAD]}
    assert to_pair(row)[1].prompt == begun
    assert to_pair({**row, "prompt": None})[1].prompt == begun


def test_sides_that_call_differently_are_two_prompts():
    row = {
        "prompt": [USER],
        "chosen": [CALL, RESULT, GOOD],
        "rejected": [CALL, {**RESULT, "content": "3"}, BAD],
    }
    with pytest.raises(RowDropped, match="prompt_mismatch"):
        to_pair(row)


@pytest.mark.parametrize(
    "nothing",
    [
        {"function_call": {"name": None, "arguments": None}},
        {"tool_calls": [{"id": None, "type": None, "function": {"name": None, "arguments": None}}]},
        {"tool_calls": [None]},
        {"tool_calls": {}},
        {"tool_calls": "null"},
        {"tool_calls": "[]", "function_call": ""},
    ],
)
def test_a_call_of_nulls_is_none(nothing):
    """Columnar files give each row all that any row has."""
    assert (
        to_pair({"prompt": [USER], "chosen": [{**GOOD, **nothing}], "rejected": [BAD]})[1].chosen[-1] == GOOD
    )


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "text": ""},
        {"type": "image_url", "text": "a sea", "image_url": {"url": "x"}},
        {"type": "input_audio", "text": None},
        {"type": "thinking", "thinking": "hm", "text": ""},
    ],
)
def test_a_part_that_is_no_text_is_not_left_out(part):
    row = {**TEXTS, "prompt": [{"role": "user", "content": [part, {"type": "text", "text": "what?"}]}]}
    with pytest.raises(RowDropped, match="not_text"):
        to_pair(row)


def test_parts_of_text_are_text_by_any_name():
    parts = [
        {"type": "text", "text": "H"},
        {"type": "input_text", "text": "i"},
        {"text": "?"},
        {"type": "text", "text": ""},
    ]
    assert to_pair({**TEXTS, "prompt": [{"role": "user", "content": parts}]})[1].prompt == [USER]


@pytest.mark.parametrize("column", ["image", "images", "video", "videos", "audio", "audios"])
def test_media_beside_the_texts_cost_the_row_and_nulls_do_not(column):
    with pytest.raises(RowDropped, match="not_text"):
        to_pair({**TEXTS, column: {"path": "a.wav", "bytes": None}})
    for nothing in ({"path": None, "bytes": None}, [None], [], ""):
        assert to_pair({**TEXTS, column: nothing})[1].prompt == [USER]


@pytest.mark.parametrize("text", [False, True])
def test_earlier_turns_of_llama_factory_are_turns(text):
    history = [["Who?", "Me."], ["Why?", "So."]]
    row = {"instruction": "Add.", "input": "1 2", "chosen": "3", "rejected": "4", "system": "Be brief."}
    pair = to_pair({**row, "history": json.dumps(history) if text else history})[1]
    said = [(turn["role"], turn["content"]) for turn in pair.prompt]
    assert said == [
        *(
            ("system", "Be brief."),
            ("user", "Who?"),
            ("assistant", "Me."),
            ("user", "Why?"),
            ("assistant", "So."),
        ),
        ("user", "Add.\n1 2"),
    ]


@pytest.mark.parametrize("history", [None, [], "", "long ago", [[1, 2]], ["a", "b"], [["a"]]])
def test_a_history_of_another_kind_is_none(history):
    assert to_pair({**TEXTS, "history": history})[1].prompt == [USER]


def test_a_named_prompt_that_a_row_lacks_is_not_taken_from_elsewhere():
    row = {"question": None, "instruction": "Rate this.", "chosen": "Yes.", "rejected": "No."}
    with pytest.raises(RowDropped, match="there is no prompt"):
        to_pair(rename_columns(row, {"prompt": "question"}))
    joined = rename_columns(
        {"instruction": "Add.", "input": "1", **TEXTS, "prompt": "x"}, {"prompt": "instruction"}
    )
    assert to_pair(joined)[1].prompt[-1]["content"] == "Add.\n1"


@pytest.mark.parametrize("as_text", [False, True])
def test_what_stands_beside_messages_in_an_object_counts(as_text):
    """OpenAI's form of preferences: {"messages": [...], "tools": [...]}."""

    def held(**values: object) -> object:
        return json.dumps(values) if as_text else values

    row = {
        "prompt": held(messages=[USER], tools=[TOOL], system="Be brief."),
        "chosen": [GOOD],
        "rejected": [BAD],
    }
    pair = to_pair(row)[1]
    assert (pair.prompt, pair.tools) == ([SYSTEM, USER], [TOOL])
    whole = {
        side: held(messages=[USER, answer], tools=[TOOL], system="Be brief.")
        for side, answer in {"chosen": GOOD, "rejected": BAD}.items()
    }
    assert to_pair(whole)[1] == pair
    with pytest.raises(RowDropped, match="bad_tools"):
        to_pair({**whole, "tools": [{**TOOL, "function": {"name": "other"}}]})
    other = {
        "chosen": held(messages=[USER, GOOD], system="Be brief."),
        "rejected": held(messages=[USER, BAD], system="Be long."),
    }
    with pytest.raises(RowDropped, match="prompt_mismatch"):
        to_pair(other)


def test_messages_kept_field_by_field_are_messages():
    """`datasets` makes an object of lists of a sequence of objects."""
    turns = {
        "role": ["system", "user", "assistant"],
        "content": ["Be brief.", "Hi?", "Yes."],
        "name": [None, "Jo", None],
    }
    row = {"chosen": turns, "rejected": {**turns, "content": ["Be brief.", "Hi?", "No."]}}
    pair = to_pair(row)[1]
    assert pair.prompt == [SYSTEM, {**USER, "name": "Jo"}]
    assert (pair.chosen[-1], pair.rejected[-1]) == (GOOD, BAD)
    shared = {"conversations": {"from": ["human"], "value": ["Hi?"]}, "chosen": "Yes.", "rejected": "No."}
    assert to_pair(shared)[1].prompt == [USER]
    with pytest.raises(RowDropped, match="lists of different lengths"):
        to_pair({**row, "chosen": {**turns, "content": ["Hi?", "Yes."]}})


def test_a_role_that_is_a_number_is_not_guessed():
    turns = [{"role": 0, "content": "Hi?"}, {"role": 1, "content": "Yes."}]
    row = {"prompt": "Hi?", "chosen": turns, "rejected": [*turns[:1], {"role": 1, "content": "No."}]}
    with pytest.raises(RowDropped, match="a message has no role"):
        to_pair(row)
    assert to_pair({**TEXTS, "prompt": [{"role": None, "content": "Hi?"}]})[1].prompt == [USER]


HALF = "\\ud83d"  # as JSON writes half of a character, which no UTF-8 text can hold


@pytest.mark.parametrize(
    "row",
    [
        {
            **TEXTS,
            "chosen": f'[{{"role": "assistant", "content": "Yes{HALF}."}}]',
            "rejected": json.dumps([BAD]),
        },
        {**TEXTS, "prompt": f'[{{"role": "user", "content": "Hi{HALF}?"}}]'},
        {**TEXTS, "system": f'["Be{HALF}"]'},
        {
            **TEXTS,
            "chosen": [{**CALL, "tool_calls": [{"name": "add", "arguments": f'{{"a": "{HALF}"}}'}]}],
            "rejected": [BAD],
        },
        {
            **TEXTS,
            "chosen": [{**CALL, "tool_calls": f'[{{"name": "add", "arguments": {{"{HALF}": 1}}}}]'}],
            "rejected": [BAD],
        },
    ],
)
def test_half_a_character_in_json_text_does_not_end_the_mixture(row):
    pair = to_pair(row)[1]
    json.dumps([pair.chosen, pair.rejected], ensure_ascii=False).encode()  # as a tokenizer takes it
    whole = to_pair(
        json.loads(json.dumps(row).replace(json.dumps(HALF)[1:-1], json.dumps(HALF + "\\ude00")[1:-1]))
    )[1]
    assert "\U0001f600" in json.dumps([whole.prompt, whole.chosen], ensure_ascii=False)


def tokenizer(template: str) -> PairTokenizer:
    return PairTokenizer(make_tokenizer(template), TokenizeRules(256))


NO_SYSTEM = CHATML.replace(
    "{% for message in messages %}", "{% for message in messages if message['role'] != 'system' %}"
)
USER_PARTS = CHATML.replace(
    "{{ message['content'] }}",
    "{% if message['role'] == 'user' %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}"
    "{% else %}{{ message['content'] }}{% endif %}",
)
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML


@pytest.mark.parametrize(
    ("template", "of_plain", "of_system"),
    [(CHATML, False, False), (NO_SYSTEM, False, True), (USER_PARTS, True, True), (REFUSES, False, False)],
)
def test_a_turn_of_the_prompt_of_which_the_template_writes_nothing_is_told(template, of_plain, of_system):
    """Its answers would be trained behind another prompt than the row has."""
    plain, with_system = to_pair(TEXTS)[1], to_pair({**TEXTS, "system": "Be brief."})[1]
    results = tokenizer(template)([plain, with_system])
    told = [not isinstance(sides, RowDropped) and sides[0].prompt_left_out for sides in results]
    assert told == [of_plain, of_system]


def test_a_template_that_writes_in_capitals_leaves_nothing_out():
    made = tokenizer(CHATML.replace("message['content'] }}", "message['content'] | upper }}"))
    (sides,) = made([to_pair({**TEXTS, "chosen": "yes it is", "rejected": "no"})[1]])
    assert not isinstance(sides, RowDropped)
    assert not any(side.left_out for side in sides)


def test_the_ledger_tells_of_prompts_that_are_left_out(tmp_path: Path):
    from dpo_core.contract.data_jobs import MixJob
    from dpo_core.contract.refs import ResolvedSource
    from tests.tiny_stage import run_here

    make_tokenizer(NO_SYSTEM).save_pretrained(tmp_path / "sft")
    rows = [{**TEXTS, "prompt": f"{i}?", **({"system": "Be brief."} if i < 2 else {})} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run_here(
        MixJob(
            sources=(ResolvedSource(label="rows", path=tmp_path / "rows.jsonl", content="c"),),
            tokenizer_path=tmp_path / "sft",
            tokenizer_fingerprint="t",
            held_out="0",
            num_workers=1,
            cache_dir=tmp_path / "cache",
        ).at(tmp_path / "mix")
    )
    (ledger,) = result.per_source
    assert (ledger.kept, ledger.prompt_left_out) == (4, 2)
    assert any(
        "leaves out a turn of the prompt, or a part of one, in 2 pairs" in said for said in result.warnings
    )
