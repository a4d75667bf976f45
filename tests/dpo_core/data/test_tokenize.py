"""Label masks checked by hand in text, truncation, and templates that make it hard."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_core.contract.drops import RowDropped
from dpo_core.data.named_templates import NAMED_TEMPLATES
from dpo_core.data.pairs import PreferencePair
from dpo_core.data.tokenize import PairTokenizer, TokenizeRules
from tests.tiny_models import CHATML, make_tokenizer

PROMPT = [
    {"role": "user", "content": "a?"},
    {"role": "assistant", "content": "first answer"},
    {"role": "user", "content": "b?"},
]
# A generation prompt that opens a thought which no finished turn has, as some reasoning models' templates do.
THINKING = CHATML.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<think>\n{% endif")
WITHOUT_OPENING = (
    "{% for message in messages %}### {{ message['role'] }}: {{ message['content'] }}<|im_end|>\n{% endfor %}"
)
# Earlier answers lose their text once another turn follows: no prefix of the rendering is stable.
FORGETFUL = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if loop.last or message['role'] != 'assistant' %}{{ message['content'] }}{% else %}...{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _pair(chosen="yes", rejected="no way", prompt=PROMPT, tools=None):
    def whole(answer):
        return [*prompt, {"role": "assistant", "content": answer}]

    return PreferencePair(prompt=prompt, chosen=whole(chosen), rejected=whole(rejected), tools=tools)


def _tokenizer(template=CHATML, limit=1000, **rules):
    return PairTokenizer(make_tokenizer(template), TokenizeRules(limit, **rules))


def _reasons(tokenizer, pair):
    """Why a pair is dropped, None for one that is kept."""
    return getattr(tokenizer([pair])[0], "reason", None)


def _trained_texts(tokenizer, side):
    """The stretches of text that carry the loss."""
    edges = np.flatnonzero(np.diff([0, *side.trained.astype(int), 0]))
    return [
        tokenizer.tokenizer.decode(side.ids[start:end])
        for start, end in zip(edges[::2], edges[1::2], strict=True)
    ]


def _results(tokenizer, pair):
    result = tokenizer([pair])[0]
    assert not isinstance(result, RowDropped), result
    return [_trained_texts(tokenizer, side) for side in result]


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>\n"),
        (NAMED_TEMPLATES["tulu"], "<|im_end|>"),
        (NAMED_TEMPLATES["zephyr"], "<|im_end|>\n"),
        (THINKING, "<|im_end|>\n"),
        (WITHOUT_OPENING, "<|im_end|>\n"),
        (FORGETFUL, "<|im_end|>\n"),
    ],
)
def test_the_last_turn_is_trained_without_header_and_with_its_end(template, end):
    chosen, rejected = _results(_tokenizer(template), _pair())
    assert [text.strip(" ") for text in chosen] == ["yes" + end]
    assert [text.strip(" ") for text in rejected] == ["no way" + end]


@pytest.mark.parametrize(
    ("template", "end"), [(CHATML, "<|im_end|>\n"), (NAMED_TEMPLATES["tulu"], "<|im_end|>")]
)
def test_all_turns_trains_every_assistant_turn(template, end):
    chosen, _ = _results(_tokenizer(template, train_on="all_turns"), _pair())
    assert chosen == ["first answer" + end, "yes" + end]


def test_an_assistant_that_speaks_first_is_trained_without_its_header():
    prompt = [{"role": "assistant", "content": "hello"}, {"role": "user", "content": "b?"}]
    chosen, _ = _results(_tokenizer(train_on="all_turns"), _pair(prompt=prompt))
    assert chosen == ["hello<|im_end|>\n", "yes<|im_end|>\n"]


def test_turns_that_cannot_be_told_apart_are_a_template_error():
    assert _reasons(_tokenizer(FORGETFUL, train_on="all_turns"), _pair()) == "template_error"


def test_a_conversation_that_the_template_refuses_is_a_template_error():
    refusing = "{% if messages[-1]['content'] == 'bad' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    asks_nothing = "{% if add_generation_prompt %}{{ raise_exception('no') }}{% endif %}" + CHATML
    assert [isinstance(result, RowDropped) for result in _tokenizer(refusing)([_pair("bad"), _pair()])] == [
        True,
        False,
    ]
    for template, pair in ((refusing, _pair("bad")), (asks_nothing, _pair())):
        dropped = _tokenizer(template)([pair])[0]
        assert (dropped.reason, dropped.detail) == ("template_error", "no")


def test_a_side_is_tokenised_as_the_template_renders_it_whole():
    tokenizer = _tokenizer()
    pair = _pair()
    for side, turns in zip(tokenizer([pair])[0], (pair.chosen, pair.rejected), strict=True):
        expected = tokenizer.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
        assert side.ids.tolist() == expected
        assert side.ids.dtype == np.int32
        assert not side.truncated


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@settings(deadline=None, max_examples=60)
@given(TEXT, TEXT, TEXT)
def test_the_mask_agrees_with_counting_the_prompts_tokens(question, chosen, rejected):
    """Open-instruct's way: everything after as many tokens as the opened prompt has. Exact where the boundary is a
    token boundary, which ChatML's line break is unless the answer begins with one."""
    tokenizer = _tokenizer()
    pair = _pair("." + chosen, "!" + rejected, prompt=[{"role": "user", "content": question}])
    num_prompt = len(tokenizer.prompt_ids([pair])[0])
    assert [side.num_prompt_tokens for side in tokenizer([pair])[0]] == [num_prompt, None]
    for side in tokenizer([pair])[0]:
        assert side.trained.tolist() == [False] * num_prompt + [True] * (len(side.ids) - num_prompt)


def test_a_token_that_reaches_into_the_header_is_not_trained():
    tokenizer = _tokenizer(
        CHATML.replace("assistant\n{%", "assistant: {%").replace(
            "{{ message['role'] }}\n", "{{ message['role'] }}: "
        )
    )
    chosen, _ = _results(tokenizer, _pair("the sea"))
    # The byte-level BPE merges the header's blank with "the": " the" belongs to both and stays out.
    assert chosen == [" sea<|im_end|>\n"]


def test_truncation_is_on_the_right_and_counted():
    tokenizer = _tokenizer()
    whole = tokenizer([_pair("yes", "no " * 50)])[0]
    limit = len(whole[0].ids)
    cut = _tokenizer(limit=limit)([_pair("yes", "no " * 50)])[0]
    assert [side.truncated for side in cut] == [False, True]
    assert cut[1].ids.tolist() == whole[1].ids[:limit].tolist()
    assert cut[1].trained.tolist() == whole[1].trained[:limit].tolist()
    assert _reasons(_tokenizer(limit=limit, when_too_long="drop"), _pair("yes", "no " * 50)) == "too_long"


@pytest.mark.parametrize("train_on", ["last_turn", "all_turns"])
def test_a_row_without_a_trained_token_of_its_answer_is_dropped(train_on):
    num_prompt = len(_tokenizer().prompt_ids([_pair()])[0])
    assert _reasons(_tokenizer(limit=num_prompt, train_on=train_on), _pair()) == "no_label_left"
    kept = _tokenizer(limit=num_prompt + 1, train_on="last_turn")([_pair()])[0]
    assert [side.trained.sum() for side in kept] == [1, 1]


@pytest.mark.parametrize("train_on", ["last_turn", "all_turns"])
def test_sides_of_the_same_tokens_prefer_nothing_and_are_dropped(train_on):
    """What differs stands behind the cut, or the template leaves it out: a loss of ln 2 for ever."""
    long = "the sea and the sky " * 8
    pair = _pair(long + "this ending is right.", long + "wrong end.")
    cut = len(_tokenizer().prompt_ids([pair])[0]) + 20
    assert _reasons(_tokenizer(limit=cut, train_on=train_on), pair) == "identical_tokens"
    assert _reasons(_tokenizer(train_on=train_on), pair) is None
    trims = CHATML.replace("message['content'] }}", "(message['content'] | string).split('|')[-1] }}")
    assert _reasons(_tokenizer(trims), _pair("a guess|4", "a sum|4")) == "identical_tokens"


def test_tools_are_rendered_and_a_template_without_them_drops_the_row():
    tools = [{"type": "function", "function": {"name": "add"}}]
    tokenizer = _tokenizer(NAMED_TEMPLATES["chatml"])
    with_tools, without = tokenizer([_pair(tools=tools), _pair()])
    assert '"name": "add"' in tokenizer.tokenizer.decode(with_tools[0].ids)
    assert '"name": "add"' not in tokenizer.tokenizer.decode(without[0].ids)
    assert [_trained_texts(tokenizer, side) for side in with_tools] == [
        ["yes<|im_end|>\n"],
        ["no way<|im_end|>\n"],
    ]
    assert _reasons(_tokenizer(), _pair(tools=tools)) == "template_without_tools"


def test_a_batch_gives_what_single_rows_give():
    tokenizer = _tokenizer()
    pairs = [_pair(f"yes {i}" * i, "é😀 no") for i in range(1, 6)]
    for alone, together in zip([tokenizer([pair])[0] for pair in pairs], tokenizer(pairs), strict=True):
        for left, right in zip(alone, together, strict=True):
            assert left.ids.tolist() == right.ids.tolist()
            assert left.trained.tolist() == right.trained.tolist()
