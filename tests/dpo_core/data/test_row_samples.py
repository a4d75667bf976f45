"""Rows as the trainer sees them, from ids and masks made by hand."""

import numpy as np

from dpo_core.data.row_samples import CHARACTERS, _spans
from tests.tiny_models import make_tokenizer


def spans(parts: list[tuple[str, bool]]) -> list[tuple[str, str]]:
    """The spans of texts that are trained or not, one behind the other."""
    tokenizer = make_tokenizer()
    ids, trained = [], []
    for text, is_trained in parts:
        new = tokenizer.encode(text, add_special_tokens=False)
        ids += new
        trained += [is_trained] * len(new)
    found = _spans(tokenizer, np.array(ids, np.int32), np.array(trained))
    return [(span.kind, span.text) for span in found]


def test_each_run_of_tokens_is_a_span_and_what_stands_before_the_first_trained_one_is_the_prompt():
    parts = [("<|im_start|>user hi", False), ("yes<|im_end|>", True), (" more", False), ("no", True)]
    kinds = ["prompt", "trained", "untrained", "trained"]
    assert spans(parts) == [(kind, text) for kind, (text, _) in zip(kinds, parts, strict=True)]


def test_a_row_without_a_prompt_begins_with_what_is_trained():
    assert spans([("yes", True)]) == [("trained", "yes")]


def test_a_long_text_is_cut_in_its_middle():
    ((_, prompt), (_, answer)) = spans([("a" * (CHARACTERS + 500), False), ("b", True)])
    assert "[... 500 characters ...]" in prompt
    assert len(prompt) < CHARACTERS + 50
    assert answer == "b"
