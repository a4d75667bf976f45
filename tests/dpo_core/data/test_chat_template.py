"""Named templates, loading a tokenizer with one, and batched rendering."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_core.contract.errors import CheckpointError, ConfigError
from dpo_core.data.chat_template import Renderer, template_sha256
from dpo_core.data.named_templates import NAMED_TEMPLATES
from dpo_core.data.render_limits import Refused
from dpo_core.data.tokenizer import load_tokenizer
from tests.tiny_models import CHATML, make_tokenizer

TURNS = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
EXPECTED = {
    "tulu": "<|system|>\nS\n<|user|>\na\n<|assistant|>\nb<|im_end|>\n<|user|>\nc\n<|assistant|>\nd<|im_end|>",
    "olmo2": "<|im_start|><|system|>\nS\n<|user|>\na\n<|assistant|>\nb<|im_end|>\n<|user|>\nc\n<|assistant|>\nd<|im_end|>",
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
    "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nd<|im_end|>\n",
    "zephyr": "<|system|>\nS<|im_end|>\n<|user|>\na<|im_end|>\n<|assistant|>\nb<|im_end|>\n<|user|>\nc<|im_end|>\n"
    "<|assistant|>\nd<|im_end|>\n",
}


def _named(name):
    return _with_bos(NAMED_TEMPLATES[name])


def _with_bos(template):
    tokenizer = make_tokenizer(template)
    tokenizer.bos_token = "<|im_start|>"
    return Renderer(tokenizer)


@pytest.mark.parametrize("name", EXPECTED)
def test_named_templates_render_as_the_models_do(name):
    assert _named(name).render([TURNS], [None]) == [EXPECTED[name]]


@pytest.mark.parametrize("name", EXPECTED)
def test_an_opened_turn_is_a_prefix_of_the_whole(name):
    renderer = _named(name)
    whole, prompt = (
        renderer.render([TURNS], [None])[0],
        renderer.render([TURNS[:-1]], [None], open_turn=True)[0],
    )
    assert whole.removeprefix(prompt).startswith("d<|im_end|>")


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("first", [0, 1])
def test_named_templates_render_tools_calls_and_results(name, first):
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}],
    }
    text = _named(name).render(
        [[*TURNS[first:2], call, {"role": "tool", "content": "42"}]], [TOOLS], open_turn=True
    )[0]
    assert text.count(json.dumps(TOOLS[0])) == 1
    assert '{"name": "add", "arguments": {"a": 1}}' in text
    assert "tool" in text.split("42")[0]


def test_a_template_without_calls_gets_them_as_text():
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "add", "arguments": {}}}],
    }
    assert (
        '{"name": "add", "arguments": {}}<|im_end|>' in Renderer(make_tokenizer()).render([[call]], [None])[0]
    )


def test_one_refused_conversation_does_not_spoil_the_batch():
    refusing = CHATML.replace(
        "{% for", "{% if messages[0]['role'] == 'tool' %}{{ raise_exception('no') }}{% endif %}{% for", 1
    )
    renderer = Renderer(make_tokenizer(refusing))
    good, bad = TURNS[1:2], [{"role": "tool", "content": "x"}]
    texts = renderer.render([good, bad, good], [None] * 3)
    assert texts[1] == Refused("no")
    assert texts[0] == texts[2] == "<|im_start|>user\na<|im_end|>\n"


# What templates in the wild do: namespaces, macros, loop counters, conditions on the last turn and on content, trimming.
WILD = (
    "{% macro head(role) %}<|im_start|>{{ role | trim }}\n{% endmacro %}{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{{ bos_token }}{% for m in messages %}{% if loop.first and m.role != 'system' %}{{ head('system') }}Be good.\n"
    "{% endif %}{{ head(m['role']) }}{% if '</think>' in m.content and loop.index0 < ns.last %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}"
    "{% if not loop.last or m.role != 'assistant' %}<|im_end|>{{ '\n' }}{% else %}{{ eos_token }}{% endif %}"
    "{{ loop.length if loop.index > 3 else '' }}{{ m.name or '' }}{% if tools %}T{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ head('assistant') }}{% endif %}"
)
ROLES = st.sampled_from(["system", "user", "assistant", "tool", " odd "])
WORDS = st.lists(
    st.sampled_from(["a", " ", "\n", "{{ x }}", "<|im_end|>", "é", "</think>", "<think>"]), max_size=4
).map("".join)


COMPARED = (*EXPECTED, "olmo", "olmo_thinker_remove_intermediate_thinking")
RENDERERS = {
    name: _with_bos(template)
    for name, template in {
        **{name: NAMED_TEMPLATES[name] for name in COMPARED},
        "CHATML": CHATML,
        "WILD": WILD,
    }.items()
}


@pytest.mark.parametrize("name", RENDERERS)
@settings(deadline=None)
@given(
    turns=st.lists(
        st.fixed_dictionaries(
            {"role": ROLES, "content": WORDS}, optional={"name": WORDS, "reasoning_content": WORDS}
        ),
        max_size=5,
    ),
    open_turn=st.booleans(),
)
def test_the_quick_rendering_is_the_librarys(name, turns, open_turn):
    renderer = RENDERERS[name]
    assert renderer.render([turns], [None], open_turn) == [renderer.render_by_library(turns, None, open_turn)]


def test_without_the_librarys_compiler_the_library_renders(monkeypatch, caplog):
    quick = Renderer(make_tokenizer()).render([TURNS], [None])
    monkeypatch.delattr("transformers.utils.chat_template_utils._compile_jinja_template")
    monkeypatch.setattr(
        Renderer,
        "render_by_library",
        lambda self, turns, tools, open_turn, arguments: f"library: {len(turns)} turns",
    )
    assert Renderer(make_tokenizer()).render([TURNS], [None]) == ["library: 5 turns"] != quick
    assert "rendered by transformers itself" in caplog.text


def test_a_template_cannot_leave_the_sandbox():
    for attack in (
        "{{ messages.__class__.__mro__ }}",
        "{{ loop.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{% for m in messages %}{{ loop._iterator.__class__ }}{{ loop.first.__class__ }}{% endfor %}",
    ):
        renderer = Renderer(make_tokenizer(attack))
        for text in (*renderer.render([TURNS], [None]), renderer.render_by_library(TURNS, None, False)):
            assert text == "" or isinstance(text, Refused)


def test_load_tokenizer_keeps_its_own_template_or_takes_the_named_one(tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path, None).chat_template == CHATML
    assert load_tokenizer(tmp_path, "zephyr").chat_template == NAMED_TEMPLATES["zephyr"]
    assert template_sha256(load_tokenizer(tmp_path, None)) != template_sha256(
        load_tokenizer(tmp_path, "chatml")
    )


def test_load_tokenizer_takes_a_templates_own_text(tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    text = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    assert load_tokenizer(tmp_path, text).chat_template == text
    with pytest.raises(CheckpointError, match=r"of checkpoint.chat_template writes a bos_token"):
        load_tokenizer(tmp_path, "{{ bos_token }}" + text)


GREETING = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
BOS_OF_ITS_OWN = (
    "{% set first = bos_token %}{% for m in messages %}{{ first if loop.first }}{{ m.content }}{% endfor %}"
)
INDENTED = "  {% for m in messages %}\n  {{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    "template", [CHATML, "{{ bos_token }}" + CHATML, BOS_OF_ITS_OWN, "<|endoftext|>" + CHATML, INDENTED]
)
def test_a_bos_token_is_written_once(tmp_path, template):
    tokenizer = make_tokenizer(template)
    plain = tokenizer.apply_chat_template(GREETING, tokenize=False).removeprefix("<|endoftext|>")
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path, add_bos=True)
    loaded.save_pretrained(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again", add_bos=True)
    for one in (loaded, again):
        assert Renderer(one).render([GREETING], [None])[0].removeprefix("<|endoftext|>") == plain
        ids = one.apply_chat_template(GREETING, return_dict=False)
        assert [ids.index(one.bos_token_id), ids.count(one.bos_token_id)] == [0, 1]


def test_a_bos_token_that_is_not_there_cannot_be_added(tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"add_bos is set.*has no bos token"):
        load_tokenizer(tmp_path, add_bos=True)


THINKS = CHATML.replace(
    "{% for", "{% if enable_thinking is defined and not enable_thinking %}/no{% endif %}{% for", 1
)


@pytest.mark.parametrize("extra", [{}, {"name": "x"}])
def test_a_conversation_has_variables_of_its_own(extra):
    renderer = Renderer(make_tokenizer(THINKS))
    turns = [{"role": "user", "content": "a", **extra}]
    given = [{"enable_thinking": False}, {}, {"enable_thinking": True}]
    assert [text[:3] for text in renderer.render([turns] * 3, [None] * 3, arguments=given)] == [
        "/no",
        "<|i",
        "<|i",
    ]
    assert renderer.render([turns], [None], True, given[:1]) == [
        renderer.render_by_library(turns, None, True, given[0])
    ]


def test_load_tokenizer_refuses_with_the_known_names(tmp_path):
    make_tokenizer(chat_template=None).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"no chat template.*chatml, olmo, olmo2, .*tulu, .*zephyr"):
        load_tokenizer(tmp_path, None)
    with pytest.raises(ConfigError, match=r"named `vicuna`.*chatml, olmo, olmo2, .*tulu, .*zephyr"):
        load_tokenizer(tmp_path, "vicuna")
    with pytest.raises(CheckpointError, match=r"writes a bos_token"):
        load_tokenizer(tmp_path, "olmo2")
    with pytest.raises(CheckpointError, match="not a directory"):
        load_tokenizer(tmp_path / "none", None)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_tokenizer(tmp_path, None)
