"""Fields of messages and forms of calls, as rows of the field have them and templates take them."""

import json

import pytest

from dpo_core.data.chat_template import Renderer
from dpo_core.data.formats import to_pair
from dpo_core.data.render_limits import Refused
from dpo_core.data.tokenize import PairTokenizer, TokenizeRules
from tests.tiny_models import CHATML, make_tokenizer

WITH_CALLS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['tool_calls'] %}{% for t in m['tool_calls'] %}CALL"
    "{% endfor %}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As DeepSeek's (joined by +), as Qwen's (objects alone), as templates that print what they are given, as those that ask.
TEMPLATES = {
    "joins": "{{ t['function']['name'] + ' ' + t['function']['arguments'] }}",
    "prints": "{{ t['function']['name'] }} {{ t['function']['arguments'] }}",
    "tilde": "{{ t['function']['name'] ~ ' ' ~ t['function']['arguments'] }}",
    "as JSON": "{{ t['function']['name'] }} {{ t['function']['arguments'] | tojson }}",
    "asks": "{{ t['function']['name'] }} {{ t['function']['arguments'] if t['function']['arguments'] is string "
    "else t['function']['arguments'] | tojson }}",
}


def renderer(text: str) -> Renderer:
    """Writes each call of a turn by ``text``."""
    return Renderer(make_tokenizer(WITH_CALLS.replace("CALL", text)))


def turns_of(arguments: object) -> list[dict]:
    call = {"id": "c0", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    row = {
        "prompt": [{"role": "user", "content": "weather in Oslo?"}],
        "chosen": [{"role": "assistant", "content": "", "tool_calls": [call]}],
        "rejected": [{"role": "assistant", "content": "It rains."}],
    }
    return to_pair(row)[1].chosen


@pytest.mark.parametrize("form", [dict, json.dumps])
@pytest.mark.parametrize("name", TEMPLATES)
def test_arguments_are_written_as_json_whatever_form_row_and_template_have(name, form):
    made = renderer(TEMPLATES[name])
    text = made.render([turns_of(form({"city": "Oslo", "days": 3}))], [None])[0]
    assert 'weather {"city": "Oslo", "days": 3}<|im_end|>' in text


def test_arguments_by_name_stay_objects():
    text = "{% for k, v in t['function']['arguments'].items() %}<{{ k }}>{{ v }}{% endfor %}"
    made = renderer(text)
    assert "<city>Oslo<days>3" in made.render([turns_of('{"city": "Oslo", "days": 3}')], [None])[0]


def test_a_user_may_write_pythons_spelling():
    """It is no sign that the template prints objects: as JSON text they would be quoted twice."""
    made = renderer(TEMPLATES["as JSON"])
    turns = turns_of({"city": "Oslo"})
    turns[0] = {"role": "user", "content": "what is {'city': 'Oslo'}?"}
    assert made.render([turns], [None])[0].count('weather {"city": "Oslo"}') == 1


def test_a_refusal_of_both_forms_is_the_first_ones():
    made = renderer("{{ raise_exception('no calls here: ' ~ t['function']['arguments']) }}")
    assert made.render([turns_of({"a": 1})], [None]) == [Refused("no calls here: {'a': 1}")]


# ---- rows of Ai2, as in Dolci and Olmo 3

FUNCTIONS = '[{"name": "weather", "description": "Weather of a city", "parameters": {}}]'
OLMO3 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] or '' }}"
    "{% if m['role'] == 'system' %}{% if m.get('functions') is not none %} <functions>{{ m['functions'] }}</functions>"
    "{% else %} You have no functions. <functions></functions>{% endif %}{% endif %}"
    "{% if m.get('function_calls') is not none %}<function_calls>{{ m['function_calls'] }}</function_calls>{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def ai2_row(chosen_call: object, rejected_call: object, functions: object = FUNCTIONS) -> dict:
    """As a columnar file gives it: every message has every field."""

    def turn(role: str, content: str | None, **fields: object) -> dict:
        return {"role": role, "content": content, "functions": None, "function_calls": None, **fields}

    prompt = [
        turn("system", "Be brief.", functions=functions),
        turn("user", "weather in Oslo and Rome?"),
        turn("assistant", None, function_calls='weather(city="Oslo")'),
        turn("environment", '{"sky": "rain"}'),
    ]
    return {
        "chosen": [*prompt, turn("assistant", None, function_calls=chosen_call)],
        "rejected": [*prompt, turn("assistant", None, function_calls=rejected_call)],
    }


def trained(template: str, row: dict) -> tuple[str, list[str]] | str:
    """Text of the chosen side and the trained text of both, or the reason for the drop."""
    made = PairTokenizer(make_tokenizer(template), TokenizeRules(2000))
    result = made([to_pair(row)[1]])[0]
    if not isinstance(result, tuple):
        return result.reason
    texts = [made.tokenizer.decode(side.ids[side.trained]) for side in result]
    return made.tokenizer.decode(result[0].ids), texts


@pytest.mark.parametrize("functions", [FUNCTIONS, json.loads(FUNCTIONS)])
def test_functions_and_their_calls_reach_the_template(functions):
    whole, answers = trained(OLMO3, ai2_row('weather(city="Rome")', "done()", functions))
    assert '<functions>[{"name": "weather"' in whole
    assert "You have no functions" not in whole
    assert '<|im_start|>environment\n{"sky": "rain"}<|im_end|>' in whole
    assert '<function_calls>weather(city="Oslo")</function_calls>' in whole
    assert answers == [
        '<function_calls>weather(city="Rome")</function_calls><|im_end|>\n',
        "<function_calls>done()</function_calls><|im_end|>\n",
    ]


def test_functions_that_the_template_would_leave_out_drop_the_row():
    """The word in the template's own text is not the field of a message."""
    mentions = CHATML.replace("{% for", "You may have functions.{% for", 1)
    for template in (CHATML, mentions):
        assert trained(template, ai2_row('weather(city="Rome")', "done()")) == "template_without_tools"


def test_calls_without_functions_become_text_for_a_template_that_knows_none():
    _, answers = trained(CHATML, ai2_row('weather(city="Rome")', "done()", None))
    assert answers == ['weather(city="Rome")<|im_end|>\n', "done()<|im_end|>\n"]
