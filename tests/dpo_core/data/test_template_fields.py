"""What a template reads of a message, by its syntax tree; and that this reaches it, and counts where turns are compared."""

import pytest

from dpo_core.contract.drops import RowDropped
from dpo_core.data.chat_template import Renderer, _environment
from dpo_core.data.formats import to_pair
from dpo_core.data.messages import EVERY, prompt_key
from dpo_core.data.template_fields import message_fields
from tests.tiny_models import make_tokenizer

USER, GOOD = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}


def read_by(template: str) -> frozenset[str]:
    return Renderer(make_tokenizer(chat_template=template)).message_fields


@pytest.mark.parametrize(
    ("template", "fields"),
    [
        (
            "{% for m in messages %}{{ m.role }}{{ m['mood'] }}{{ m.get('place') }}{% endfor %}",
            {"mood", "place"},
        ),
        (
            "{% for m in messages %}{% if 'prefix' in m and 'x' not in m %}{% endif %}{% endfor %}",
            {"prefix", "x"},
        ),
        ("{{ messages[0].mood }}{{ messages[-1]['x'] }}{{ (messages | first).y }}", {"mood", "x", "y"}),
        ("{% set rest = messages[1:] %}{% for turn in rest %}{{ turn.mood }}{% endfor %}", {"mood"}),
        ("{% set s = messages[0] %}{% set t = s %}{{ t.mood }}", {"mood"}),
        (
            "{% set l = messages if x else messages[2:] %}{% for m in l | reverse %}{{ m.mood }}{% endfor %}",
            {"mood"},
        ),
        ("{% for m in messages %}{{ loop.previtem.mood }}{{ loop.index }}{% endfor %}", {"mood"}),
        (
            "{% macro say(turn) %}{{ turn.mood }}{% endmacro %}{% for m in messages %}{{ say(m) }}{% endfor %}",
            {"mood"},
        ),
        ("{% for m in messages %}{% for k in ['mood'] %}{{ m[k] }}{% endfor %}{% endfor %}", {"mood"}),
        # of something else than a turn
        (
            "{% for t in tools %}{{ t.mood }}{% endfor %}{{ cfg.mood }}{{ 'mood' }}{{ messages | length }}",
            set(),
        ),
        ("{% for m in messages %}{% for c in m.tool_calls %}{{ c.id }}{% endfor %}{% endfor %}", set()),
        ("{% for m in messages %}", set()),  # which no row can be rendered with
    ],
)
def test_names_that_a_template_asks_of_a_turn(template, fields):
    assert read_by(template) - {"role", "tool_calls"} == fields


def in_turns(text: str) -> str:
    return "{% for m in messages %}" + text + "{% endfor %}"


FOLLOWED = {
    "{% macro r(message) %}{{ message.mood }}{% endmacro %}" + in_turns("{{ r(message=m) }}"): "mood",
    "{% macro r(a, t=none) %}{{ t.mood }}{% endmacro %}" + in_turns("{{ r(1, t=m) }}{{ r(2, m) }}"): "mood",
    "{% macro r(t=messages[0]) %}{{ t.mood }}{% endmacro %}{{ r() }}": "mood",
    # a parameter of the same name that holds a text
    "{% macro warn(m) %}{{ m }}{% endmacro %}" + in_turns("{{ warn('x') }}{{ m.mood }}"): "mood",
    "{% macro w() %}{{ caller(messages[0]) }}{% endmacro %}{% call(m) w() %}{{ m.mood }}{% endcall %}": "mood",
    "{% set ns = namespace(x='') %}" + in_turns("{% set ns.x = m.mood %}") + "{{ ns.x }}": "mood",
    "{% set ns = namespace(t=none) %}"
    + in_turns("{% set ns.t = m %}")
    + "{{ ns.t.mood }}{{ ns['t'].x }}": "mood x",
    "{% set ns = namespace(t=messages[0]) %}{{ ns.t.mood }}": "mood",
    "{% set ns = namespace(l=[]) %}"
    + in_turns("{% set ns.l = ns.l + [m] %}")
    + "{% for o in ns.l %}{{ o.mood }}{% endfor %}": "mood",
    "{% set ns = namespace(m=messages[0]) %}{% macro r(n) %}{{ n.m.mood }}{% endmacro %}{{ r(ns) }}": "mood",
    "{% set l = [] %}" + in_turns("{% set _ = l.append(m) %}") + "{{ l[0].mood }}": "mood",
    "{% for g in messages | batch(2) %}{% for m in g %}{{ m.mood }}{% endfor %}{% endfor %}": "mood",
    "{% for m in messages | rejectattr('mood') if m.y %}{{ m.x }}{% endfor %}": "mood x y",
    "{% with m = messages[0] %}{{ m.mood }}{% endwith %}": "mood",
    "{% set a, b = messages[0], messages[1] %}{{ a.x }}{{ b.y }}": "x y",
    "{% set m = messages[0] or {} %}{{ m.mood }}{{ (messages | first | default({})).x }}": "mood x",
    "{{ messages | map(attribute='mood') | join }}{{ messages | join(', ', attribute='x') }}": "mood x",
    "{{ messages | selectattr('mood', 'equalto', 'x') | list | length }}": "mood",
    "{{ (messages | sort(attribute='meta.mood'))[0].x }}": "meta x",
    in_turns("{{ m | attr('mood') }}"): "mood",
    in_turns("{% set t = dict(m, content='') %}{{ t.mood }}{{ m.copy().x }}"): "mood x",
    in_turns("{{ m['x' if y else 'z'] }}"): "x z",
    # asked about, and not read
    in_turns(
        "{% if m is mapping and m != messages[-1] and not m is none %}{{ 'x' if m else '' }}{% endif %}"
    ): "",
    "{{ messages | length }}{{ raise_exception(messages) }}{{ messages[1:] is defined }}": "",
}
WHOLE = [
    in_turns("{{ m | tojson }}"),
    in_turns("{{ m }}"),
    in_turns("{{ 'turn: ' ~ m }}"),
    in_turns("{{ {'turn': m} | tojson }}"),
    in_turns("{% for key, value in m.items() %}{{ key }}{{ value }}{% endfor %}"),
    in_turns("{% for key in m %}{{ key }}: {{ m[key] }}{% endfor %}"),
    in_turns("{{ m.keys() | list }}"),
    in_turns("{{ m | dictsort }}"),
    in_turns("{{ m | items | list }}"),
    in_turns("{{ m['mo' ~ 'od'] }}"),
    in_turns("{{ m[which] }}"),
    in_turns("{{ unknown(m) }}"),
    "{{ messages | tojson }}",
    "{{ messages[1:] }}",
    "{{ messages | map('tojson') | join }}",
    "{% for group in messages | groupby('mood') %}{{ group.list }}{% endfor %}",
    "{% macro r() %}{{ varargs[0].mood }}{{ kwargs.t.x }}{% endmacro %}" + in_turns("{{ r(m, t=m) }}"),
    "{% set say = r %}" + in_turns("{{ say(m) }}"),
    "{% set ns = namespace(out='') %}"
    + in_turns("{% set ns.out = ns.out ~ (m | tojson) %}")
    + "{{ ns.out }}",
]


@pytest.mark.parametrize(("template", "fields"), FOLLOWED.items())
def test_a_turn_is_followed_to_where_its_fields_are_read(template: str, fields: str):
    assert message_fields(_environment().parse(template)) == set(fields.split())


@pytest.mark.parametrize("template", WHOLE)
def test_of_a_turn_that_is_written_whole_or_not_followed_every_field_may_be_read(template: str):
    assert EVERY in message_fields(_environment().parse(template))


TOOL_STYLE = """{%- macro render(message, is_last=false) -%}
<|im_start|>{{ message.role }}{% if message.audience %} to={{ message.audience }}{% endif %}
{{ message.content }}{% if is_last %}{{ message.get('suffix', '') }}{% endif %}<|im_end|>
{%- endmacro -%}
{%- set state = namespace(system=none, channel='final', question=-1) -%}
{%- if messages[0].role == 'system' %}{% set state.system = messages[0] %}{% set loop_messages = messages[1:] %}
{%- else %}{% set loop_messages = messages %}{% endif -%}
{%- if state.system %}{{ state.system.content }}{% for name in state.system.topics or [] %}{{ name }}{% endfor %}{% endif -%}
{%- for message in loop_messages -%}
{%- if message.role == 'user' and message is not string %}{% set state.question = loop.index0 %}{% endif -%}
{%- set state.channel = message.channel or state.channel -%}
{{ render(message=message, is_last=loop.last) }}
{%- for call in message.tool_calls or [] %}{{ call | tojson }}{% endfor -%}
{%- endfor -%}"""
DUMPS = (
    "{% for message in messages %}<|im_start|>{{ message | tojson }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def test_a_template_of_macros_and_namespaces_reads_what_it_names():
    named = {"role", "content", "audience", "suffix", "topics", "channel", "tool_calls"}
    assert message_fields(_environment().parse(TOOL_STYLE)) == named


def test_a_template_that_writes_turns_whole_is_given_all_of_them():
    renderer = Renderer(make_tokenizer(chat_template=DUMPS))
    row = {"prompt": [{**USER, "mood": "calm"}], "chosen": [{**GOOD, "tone": [1]}], "rejected": [GOOD]}
    pair = to_pair(row, renderer.message_fields)[1]
    assert renderer.render([pair.chosen, pair.rejected], [None, None]) == [
        '<|im_start|>{"role": "user", "content": "Hi?", "mood": "calm"}<|im_end|>'
        f'<|im_start|>{{"role": "assistant", "content": "Yes."{more}}}<|im_end|>'
        for more in (', "tone": [1]', "")
    ]


@pytest.mark.parametrize("value", ["calm", True, 3, {"a": [1]}, ["x"]])
def test_a_field_that_the_template_reads_is_kept_and_compared(value):
    fields = frozenset({"mood", "role", "content"})
    said = {**GOOD, "mood": value}
    pair = to_pair({"prompt": [USER], "chosen": [said], "rejected": [{**GOOD, "note": 1}]}, fields)[1]
    assert (pair.chosen[-1], pair.rejected[-1]) == (said, GOOD)  # a note that nobody reads is none
    for other in (None, "", [], {}):  # columnar files fill every field that any row has
        with pytest.raises(RowDropped, match="identical_pair"):
            to_pair({"prompt": [USER], "chosen": [GOOD], "rejected": [{**GOOD, "mood": other}]}, fields)
    one, another = {**USER, "mood": value}, {**USER, "mood": "loud"}
    row = {"chosen": [one, GOOD], "rejected": [another, {**GOOD, "content": "No."}]}
    with pytest.raises(RowDropped, match="prompt_mismatch"):
        to_pair(row, fields)
    assert to_pair(row)[1].prompt == [USER]
    assert prompt_key([one]) != prompt_key([another]) != prompt_key([USER])


def test_the_template_is_given_what_it_reads():
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.mood %} ({{ m.mood }}){% endif %}{% endfor %}"
    renderer = Renderer(make_tokenizer(chat_template=template))
    row = {"prompt": "Hi?", "chosen": [{**GOOD, "mood": "calm"}], "rejected": [GOOD]}
    pair = to_pair(row, renderer.message_fields)[1]
    assert renderer.render([pair.chosen, pair.rejected], [None, None]) == [
        "<user>Hi?<assistant>Yes. (calm)",
        "<user>Hi?<assistant>Yes.",
    ]


QUOTES = "{% for m in messages %}{% if m.role == 'ipython' or m.role == 'tool' %}R{% endif %}{{ m.content }}{% endfor %}"
BY_ROLE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "token", "said", "kept"),
    [
        (BY_ROLE, None, "observation", "tool"),
        (BY_ROLE, "<|observation|>", "observation", "observation"),  # GLM 4
        (
            BY_ROLE,
            "<|tool_response|>",
            "tool_response",
            "tool_response",
        ),  # Phi 4 mini, whose <|tool|> is another thing
        (QUOTES, None, "ipython", "ipython"),
        (QUOTES, None, "Observation", "tool"),
        (BY_ROLE, "<|environment|>", "environment", "environment"),
    ],
)
def test_a_results_role_is_the_templates_word_where_the_row_has_it(template, token, said, kept):
    tokenizer = make_tokenizer(template)
    if token:
        tokenizer.add_special_tokens({"additional_special_tokens": [token]})
    fields = Renderer(tokenizer).message_fields
    turns = [USER, GOOD, {"role": said, "content": "rain"}]
    row = {"prompt": turns, "chosen": "Yes.", "rejected": "No."}
    assert [turn["role"] for turn in to_pair(row, fields)[1].prompt] == ["user", "assistant", kept]
