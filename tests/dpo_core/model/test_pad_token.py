"""The pad token of a hand-off: exists, is not eos, is never written by the template."""

from transformers import PreTrainedTokenizerFast

from dpo_core.model.pad_token import choose_pad_token
from tests.tiny_models import CHATML, make_tokenizer


def chosen(tokenizer: PreTrainedTokenizerFast, vocab_size: int | None = None, **arguments):
    return choose_pad_token(tokenizer, None, vocab_size or len(tokenizer), **arguments)


def test_a_good_pad_token_stays() -> None:
    pad = chosen(make_tokenizer(pad_token="<|endoftext|>"))
    assert (pad.token, pad.token_id, pad.is_new) == ("<|endoftext|>", 0, False)


def test_pad_equal_to_eos_becomes_an_unused_special_token() -> None:
    tokenizer = make_tokenizer(pad_token="<|im_end|>")  # SmolLM2's case
    pad = chosen(tokenizer)
    assert (pad.token, pad.is_new, pad.vocab_size) == ("<|endoftext|>", False, len(tokenizer))


def test_a_missing_pad_token_is_found() -> None:
    assert chosen(make_tokenizer(pad_token=None)).token == "<|endoftext|>"


def test_a_token_that_the_template_writes_is_never_pad() -> None:
    tokenizer = make_tokenizer(pad_token="<|endoftext|>", chat_template="<|endoftext|>" + CHATML)
    pad = chosen(tokenizer)
    assert pad.token == "<pad>"
    assert pad.is_new
    assert tokenizer.pad_token == "<|endoftext|>"  # the caller applies it


def test_a_second_end_token_is_never_pad() -> None:
    pad = chosen(make_tokenizer(pad_token="<|im_end|>"), eos_token_ids=(0,))  # generation config ends at both
    assert pad.is_new


def test_reserved_tokens_serve_before_a_new_one() -> None:
    tokenizer = make_tokenizer(pad_token="<|im_end|>", chat_template="<|endoftext|>" + CHATML)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|reserved_special_token_7|>"]})
    assert chosen(tokenizer).token == "<|reserved_special_token_7|>"


def test_a_new_token_takes_a_spare_row_or_grows_the_vocabulary() -> None:
    tokenizer = make_tokenizer(pad_token="<|im_end|>", chat_template="<|endoftext|>" + CHATML)
    size = len(tokenizer)
    spare = chosen(tokenizer, vocab_size=size + 1)
    assert (spare.token_id, spare.vocab_size) == (size, size + 1)
    grown = chosen(tokenizer, vocab_size=size)
    assert grown.token_id == size
    assert grown.vocab_size == -(-(size + 1) // 8) * 8


def test_the_choice_satisfies_a_rendered_prompt() -> None:
    tokenizer = make_tokenizer(pad_token="<|im_end|>")
    tokenizer.pad_token = chosen(tokenizer).token
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], add_generation_prompt=True)[
        "input_ids"
    ]
    assert tokenizer.pad_token_id not in ids
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
