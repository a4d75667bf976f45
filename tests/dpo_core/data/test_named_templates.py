"""Named templates against open-instruct's: texts, ids and masks that its own code gave once, as hashes.

The hashes are made with its ``CHAT_TEMPLATES`` and its tokenising functions at the commit that the file names, by
``make_open_instruct_templates.py`` from a checkout of it.
"""

import json
from pathlib import Path

import pytest

from dpo_core.contract.chat_templates import WITHOUT_END_MARK
from dpo_core.contract.drops import RowDropped
from dpo_core.data.chat_template import Renderer
from dpo_core.data.end_mark import end_mark_warning
from dpo_core.data.named_templates import NAMED_TEMPLATES
from dpo_core.data.pairs import PreferencePair
from dpo_core.data.tokenize import PairTokenizer, TokenizeRules
from tests.dpo_core.data.open_instruct_rows import (
    NUM_PAIRS,
    function_conversations,
    many_pairs,
    pairs,
    plain_conversations,
    sha,
)
from tests.tiny_models import make_tokenizer

THEIRS = json.loads(Path(__file__).with_name("open_instruct_templates.json").read_text())["templates"]
# The others leave functions and calls out; ours write the calls as text.
WITH_FUNCTIONS = [name for name in THEIRS if "function_calls" in NAMED_TEMPLATES[name]]


def test_every_name_of_open_instruct_is_known():
    assert len(THEIRS) == 21
    assert len(WITH_FUNCTIONS) == 6
    assert set(THEIRS) < set(NAMED_TEMPLATES)


@pytest.mark.parametrize("name", THEIRS)
def test_a_named_template_renders_what_open_instructs_does(name):
    renderer = Renderer(make_tokenizer(NAMED_TEMPLATES[name]))
    conversations = plain_conversations() + (function_conversations() if name in WITH_FUNCTIONS else [])
    rendered = [
        renderer.render([turns], [None], open_turn)[0]
        for turns in conversations
        for open_turn in (False, True)
    ]
    assert sha(rendered) == THEIRS[name]["rendered"]


@pytest.mark.parametrize("name", THEIRS)
def test_ids_and_masks_are_open_instructs(name):
    """Where its filter keeps a row; where it drops one, as it cannot tell the answer's tokens, the ids alone."""
    results = PairTokenizer(make_tokenizer(NAMED_TEMPLATES[name]), TokenizeRules(2048))(pairs())
    assert len(results) == len(THEIRS[name]["rows"])
    for sides, expected in zip(results, THEIRS[name]["rows"], strict=True):
        assert not isinstance(sides, str), sides
        assert sha([side.ids.tolist() for side in sides]) == expected["ids"]
        if expected["trained"] is not None:
            assert sha([side.trained.astype(int).tolist() for side in sides]) == expected["trained"]


@pytest.mark.integration
@pytest.mark.parametrize("name", THEIRS)
def test_ids_and_masks_of_500_rows_are_open_instructs(name):
    """As above: masks of the rows that its filter keeps."""
    expected = THEIRS[name]["many"]
    results = PairTokenizer(make_tokenizer(NAMED_TEMPLATES[name]), TokenizeRules(2048))(many_pairs())
    assert len(results) == NUM_PAIRS
    assert sha([[side.ids.tolist() for side in sides] for sides in results]) == expected["ids"]
    is_kept = [number % 2 == 0 for number, count in enumerate(expected["kept"]) for _ in range(count)]
    masks = [
        [side.trained.astype(int).tolist() for side in sides]
        for sides, kept in zip(results, is_kept, strict=True)
        if kept
    ]
    assert sha(masks) == expected["trained"]


def test_an_answer_whose_thought_is_left_out_is_trained_from_its_beginning():
    """Theirs counts the tokens of a prompt that ends with <think>, which the answer's turn does not have, and masks as many
    of the answer."""
    tokenizer = make_tokenizer(NAMED_TEMPLATES["tulu_thinker_r1_style"])
    prompt = [{"role": "user", "content": "Where?"}]
    chosen, rejected = (
        [*prompt, {"role": "assistant", "content": f"<think>Hm.</think>No, {place}."}]
        for place in ("the sea", "Paris")
    )
    pair = PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected)
    (sides,) = PairTokenizer(tokenizer, TokenizeRules(2048))([pair])
    assert not isinstance(sides, RowDropped)
    assert [tokenizer.decode(side.ids[side.trained]) for side in sides] == [
        "No, the sea.<|im_end|>",
        "No, Paris.<|im_end|>",
    ]
    assert all(side.left_out for side in sides)


@pytest.mark.parametrize("name", NAMED_TEMPLATES)
def test_which_of_them_have_no_end_mark_is_known_without_rendering(name):
    tokenizer = make_tokenizer(NAMED_TEMPLATES[name])
    tokenizer.bos_token = "<|endoftext|>"
    said = end_mark_warning(PairTokenizer(tokenizer, TokenizeRules(100)))
    assert (said is not None) == (name in WITHOUT_END_MARK)
