"""Halves of characters, which JSON can write and UTF-8 cannot: U+FFFD in their place, counted, wherever they stand."""

import json

import pytest

from dpo_core.data.formats import to_pair
from dpo_core.data.half_characters import has_half, whole
from dpo_core.data.pair_dataset import PairDataset
from tests.dpo_core.steps.test_mix_said import mixed, row
from tests.tiny_models import make_tokenizer

HIGH, LOW = "\ud83d", "\ude00"  # of a smiling face


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        (f"a{HIGH}", "a\ufffd"),
        (f"{HIGH}a{LOW}b", "\ufffda\ufffdb"),
        (f"{HIGH}{HIGH}{LOW}", "\ufffd\U0001f600"),
        (f"{LOW}{HIGH}", "\ufffd\ufffd"),
        (f"{HIGH}é\U0001f600", "\ufffdé\U0001f600"),
    ],
)
def test_each_half_is_one_character_of_replacement_and_two_that_fit_are_one(text: str, mended: str):
    assert has_half(text)
    assert whole(text) == mended
    assert not has_half(mended)


@pytest.mark.parametrize("text", ["", "plain", "é", "\U0001f600", "\ufffd", r"\ud83d"])
def test_other_texts_stay_as_they_are(text: str):
    assert whole(text) is text


CALL = {"function": {"name": "f", "arguments": {"q": HIGH}}}
USER, NO = {"role": "user", "content": "Hi"}, [{"role": "assistant", "content": "no"}]
IN_TEXT = json.dumps([{"role": "assistant", "content": f"yes {HIGH}"}])
THOUGHT = {"role": "assistant", "content": "a", "thinking": HIGH}


@pytest.mark.parametrize(
    "raw",
    [
        row(0) | {"prompt": f"Hi {HIGH}"},
        row(0) | {"chosen": f"yes {HIGH}"},
        row(0) | {"rejected": f"no {LOW}"},
        row(0) | {"system": HIGH},
        row(0) | {"tools": [{"type": "function", "function": {"name": "f", "description": HIGH}}]},
        row(0) | {"chosen": IN_TEXT, "rejected": json.dumps(NO)},
        row(0) | {"chosen": [{"role": "assistant", "tool_calls": [CALL]}], "rejected": NO},
        row(0) | {"chat_template_kwargs": {"x": HIGH}},
        {"chosen": [USER, THOUGHT], "rejected": [USER, *NO]},
    ],
)  # fmt: skip
def test_a_half_is_found_wherever_a_pair_may_hold_it(raw: dict):
    pair = to_pair(raw)[1]
    assert pair.has_replaced
    for said in (pair.prompt, pair.chosen, pair.rejected, pair.tools, pair.template_kwargs):
        json.dumps(said, ensure_ascii=False).encode()
    assert pair.chosen[:-1] == pair.rejected[:-1] == pair.prompt


def test_halves_of_one_character_that_text_in_text_holds_apart_are_that_character():
    pair = to_pair(row(0) | {"prompt": r"[{'role': 'user', 'content': 'Hi \ud83d\ude00'}]"})[1]
    assert (pair.prompt[0]["content"], pair.has_replaced) == ("Hi \U0001f600", False)


def test_a_mixture_trains_what_the_ledger_says_and_counts_the_rows(tmp_path):
    rows = [row(n) | {"unread": HIGH} for n in range(4)]
    rows[1] |= {"chosen": f"yes {HIGH}, the sea"}
    rows[3] |= {"prompt": f"p 3 {LOW}"}
    result = mixed(tmp_path, rows)
    (ledger,) = result.per_source
    assert (ledger.rows_in, ledger.kept, ledger.replaced, ledger.replaced_rows) == (4, 4, 2, (1, 3))
    assert len(result.warnings) == 1
    assert "2 pairs hold half a character" in result.warnings[0]
    assert "rows 1, 3)" in result.warnings[0]
    data, tokenizer = PairDataset.open(result.data.path, "train"), make_tokenizer()
    texts = {tokenizer.decode(data[i].chosen_ids) for i in range(4)}
    assert sum("yes \ufffd, the sea<|im_end|>" in text for text in texts) == 1
    assert sum("p 3 \ufffd<|im_end|>" in text for text in texts) == 1
    assert not any("?" in text for text in texts)


def test_sides_that_differ_in_a_half_alone_are_no_preference(tmp_path):
    result = mixed(tmp_path, [row(0), row(1, f"yes {HIGH}", f"yes {LOW}")])
    assert result.per_source[0].dropped == {"identical_tokens": 1}
    assert result.per_source[0].replaced == 0
