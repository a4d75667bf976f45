"""What a template reads of a message, by its syntax tree; and that this reaches it, and counts where turns are compared."""

import pytest

from dpo_core.contract.drops import RowDropped
from dpo_core.data.chat_template import Renderer
from dpo_core.data.formats import to_pair
from dpo_core.data.pool import prompt_key
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
