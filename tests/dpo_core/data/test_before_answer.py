"""What a chat template leaves out of that which stands before an answer."""

import pytest

from dpo_core.contract.drops import RowDropped
from dpo_core.data.end_mark import end_mark_warning
from dpo_core.data.formats import to_pair
from dpo_core.data.tokenize import PairTokenizer, TokenizeRules
from tests.tiny_models import CHATML, make_tokenizer

TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CALL = {"name": "weather", "arguments": {"city": "Oslo"}}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": {}}}


def over(messages: str, turn: str = TURN) -> str:
    return f"{{% for m in {messages} %}}{turn}{{% endfor %}}{OPEN}"


def turn(role: str, content: str, **more: object) -> dict:
    return {"role": role, "content": content, **more}


def row(*prompt: dict, **more: object) -> dict:
    return {
        "prompt": list(prompt),
        "chosen": [turn("assistant", "It is so.")],
        "rejected": [turn("assistant", "No.")],
        **more,
    }


def outcome(template: str, raw: dict) -> bool | str:
    """Why a row is dropped, or whether something of its prompt is left out."""
    made = PairTokenizer(make_tokenizer(template), TokenizeRules(4000))
    (sides,) = made([to_pair(raw, made.renderer.message_fields)[1]])
    if isinstance(sides, RowDropped):
        return str(sides)
    assert sides[0].prompt_left_out == sides[1].prompt_left_out
    return sides[0].prompt_left_out


ASK, ANSWER, AGAIN = turn("user", "Who?"), turn("assistant", "Jo."), turn("user", "Why?")
CALLED = turn("assistant", "I look it up.", tool_calls=[CALL])
USER_AND_ASSISTANT = over("messages", "{% if m.role in ('user', 'assistant') %}" + TURN + "{% endif %}")
FIRST_SYSTEM = over("messages", "{% if m.role != 'system' or loop.first %}" + TURN + "{% endif %}")
CALLS_ALONE = over(
    "messages", "{% if m.tool_calls %}{{ m.tool_calls | tojson }}<|im_end|>{% else %}" + TURN + "{% endif %}"
)
LAST_CALLS = over(
    "messages", TURN + "{% if m.tool_calls and loop.last %}{{ m.tool_calls | tojson }}{% endif %}"
)
THOUGHTS = over("messages", TURN.replace("m.content", "m.content.split('</think>')[-1].strip()"))
JSON_RESULTS = over(
    "messages",
    "{% if m.role == 'tool' and m.content[0] != '{' %}{{ raise_exception('JSON') }}{% endif %}"
    + TURN.replace("m.content", "m.content | upper"),
)
LEFT_OUT = {
    "a result": (USER_AND_ASSISTANT, row(ASK, ANSWER, turn("tool", "rainy")), True),
    "of the environment": (USER_AND_ASSISTANT, row(ASK, ANSWER, turn("environment", "rainy")), True),
    "of a role of one's own": (USER_AND_ASSISTANT, row(ASK, turn("critic", "be kind")), True),
    "neither": (USER_AND_ASSISTANT, row(ASK, ANSWER, AGAIN), False),
    "a system turn further on": (FIRST_SYSTEM, row(ASK, ANSWER, turn("system", "Be brief."), AGAIN), True),
    "a second system turn": (
        FIRST_SYSTEM,
        row(turn("system", "Be kind."), turn("system", "Be brief."), ASK),
        True,
    ),
    "the first system turn": (FIRST_SYSTEM, row(turn("system", "Be brief."), ASK), False),
    "earlier turns": (over("messages[-2:]"), row(ASK, ANSWER, AGAIN), True),
    "no earlier turns": (over("messages[-2:]"), row(ASK), False),
    "what is said beside a call": (CALLS_ALONE, row(ASK, CALLED, turn("tool", "rainy")), True),
    "a call of an earlier turn": (LAST_CALLS, row(ASK, CALLED, turn("tool", "rainy")), True),
    "a call that a template of calls as text writes": (CHATML, row(ASK, CALLED, turn("tool", "rain")), False),
    "the end of a question": (
        over("messages", TURN.replace("m.content", "m.content[:7]")),
        row(turn("user", "What do seas weigh?")),
        True,
    ),
    "a thought of an earlier turn": (
        THOUGHTS,
        row(ASK, turn("assistant", "<think>x?</think>\n\nJo."), AGAIN),
        False,
    ),
    "a thought alone": (THOUGHTS, row(ASK, turn("assistant", "<think>x?</think>"), AGAIN), False),
    "what a user says of thoughts": (THOUGHTS, row(turn("user", "Say hm</think> now, quickly!")), True),
    "capitals": (over("messages", TURN.replace("m.content", "m.content | upper")), row(ASK), False),
    "escapes": (
        over("messages", TURN.replace("m.content", "m.content | tojson")),
        row(turn("user", 'a "b"\n\tc')),
        False,
    ),
    "a text that is looked into": (JSON_RESULTS, row(ASK, ANSWER, turn("tool", '{"sky": "rain"}')), False),
    "blanks": (
        over("messages", TURN.replace("m.content", "m.content | trim")),
        row(turn("user", " a ")),
        False,
    ),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_turns_that_are_left_out_are_told(case):
    template, raw, expected = LEFT_OUT[case]
    assert outcome(template, raw) is expected


@pytest.mark.parametrize("messages", ["messages | reverse", "messages | sort(attribute='role')"])
def test_turns_of_the_prompt_are_no_answer(messages):
    """They would be trained as one."""
    said = outcome(over(messages), row(ASK, ANSWER, AGAIN))
    assert said == "template_error: it writes a turn of the prompt behind the answer"


WITH_SYSTEM = (
    "{% if messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}{{ tools | tojson if tools }}"
    "<|im_end|>\n{% endif %}" + over("messages", "{% if m.role != 'system' %}" + TURN + "{% endif %}")
)
TOOLS = {
    "behind a system prompt": (WITH_SYSTEM, [turn("system", "Be brief."), ASK], False),
    "without one": (WITH_SYSTEM, [ASK], "template_without_tools: "),
    "without one, and named": (
        WITH_SYSTEM,
        [turn("user", "use weather, weather")],
        "template_without_tools: ",
    ),
    "in words alone": ("You have no tools." + CHATML, [ASK], "template_without_tools: "),
    "in a comment": ("{# tools #}" + CHATML, [ASK], "template_without_tools: "),
    "without their names": (
        "{% for t in tools or [] %}<{{ t.name }}>{% endfor %}" + CHATML,
        [ASK],
        "template_without_tools: ",
    ),
    "their names": ("{% for t in tools or [] %}<{{ t.function.name }}>{% endfor %}" + CHATML, [ASK], False),
    "of which the user speaks": (
        "{{ tools | tojson if tools }}" + CHATML,
        [turn("user", "weather or weather?")],
        False,
    ),
    "their descriptions, of which the user speaks": (
        "{% for t in tools or [] %}<{{ t.function.description }}>{% endfor %}" + CHATML,
        [turn("user", "weather?")],
        False,
    ),
}


@pytest.mark.parametrize("case", TOOLS)
def test_tools_that_are_not_written_in_this_conversation_drop_the_row(case):
    template, prompt, expected = TOOLS[case]
    assert outcome(template, row(*prompt, tools=[WEATHER])) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + over("messages"),
        over("messages", TURN.replace("m.content", "m.content | upper")),
        over("messages", TURN.replace("<|im_end|>", "{% if not loop.last %}<|im_end|>{% endif %}")),
    ],
)
def test_a_missing_end_mark_is_seen_in_templates_that_want_a_system_turn_or_change_texts(template):
    def said(text: str) -> str | None:
        return end_mark_warning(PairTokenizer(make_tokenizer(text), TokenizeRules(100)))

    without = template.replace("<|im_end|>", "")
    assert "closes an answer with no special token" in (said(without) or "")
    assert (said(template) is None) == ("loop.last" not in template)
