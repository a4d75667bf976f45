"""Tokenising a pair's prompt once gives exactly what tokenising both sides whole gives."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dpo_core.data.encode import Encoder
from tests.tiny_models import make_tokenizer


def _sentencepiece_like(prepend_scheme):
    """Blanks as ▁, put before the text or before every piece, as in Llama 2 and T5."""
    words = ["▁", "a", "b", "▁a", "▁b", "ab", "▁ab", "<", "|", "s", "|>", "\n"]
    scores = [("<unk>", -9.0), *((word, -float(len(words) - i)) for i, word in enumerate(words))]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.add_special_tokens({"eos_token": "</s>", "additional_special_tokens": ["<|s|>", "<|s|>a"]})
    return fast


TOKENIZERS = {
    "byte-level": make_tokenizer(),
    "first": _sentencepiece_like("first"),
    "always": _sentencepiece_like("always"),
}
PIECES = st.lists(
    st.sampled_from(
        [
            "<|im_start|>",
            "<|im_end|>",
            "<|s|>",
            "<|s|>a",
            "</s>",
            "<|",
            "s|>",
            "<|im_",
            " ",
            "\n",
            "a",
            "ab",
            " b",
            "é",
            "😀",
            "the sea",
            "ﬁ",
        ]
    ),
    max_size=8,
).map("".join)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=150)
@given(prompt=PIECES, chosen=PIECES, rejected=PIECES)
def test_halves_have_the_ids_and_offsets_of_the_whole(name, prompt, chosen, rejected):
    encoder = Encoder(TOKENIZERS[name])
    texts = (prompt + chosen, prompt + rejected)
    for text, encoded in zip(texts, encoder.encode_pairs([texts], [prompt])[0], strict=True):
        whole, plain = (
            encoder.encode_pairs([(text, text)], [""])[0][0],
            TOKENIZERS[name](text, add_special_tokens=False),
        )
        assert encoded.ids.tolist() == whole.ids.tolist() == plain["input_ids"]
        for position in range(len(text) + 1):
            assert encoded.token_at(position) == whole.token_at(position)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=150)
@given(prompt=PIECES, answer=PIECES)
def test_how_many_tokens_a_beginning_has_is_told_where_they_are_those_of_the_whole(name, prompt, answer):
    encoder, text = Encoder(TOKENIZERS[name]), prompt + answer
    encoded = encoder.encode_pairs([(text, text)], [prompt])[0][0]
    for end in range(len(text) + 1):
        number = encoder.prefix_tokens(encoded, text, end)
        if number is not None:
            assert encoder.encode_whole([text[:end]])[0].ids.tolist() == encoded.ids[:number].tolist()


def test_a_prompts_tokens_are_told_behind_a_header_and_not_where_a_token_reaches_over_its_end():
    encoder = Encoder(TOKENIZERS["byte-level"])
    for header, is_told in (("assistant\n", True), ("assistant: ", False)):
        prompt = f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>{header}"
        text = prompt + "the sea"
        encoded = encoder.encode_pairs([(text, text)], [prompt])[0][0]
        assert (encoder.prefix_tokens(encoded, text, len(prompt)) is not None) == is_told


def test_the_prompt_is_cut_before_its_last_special_token():
    encoder = Encoder(TOKENIZERS["byte-level"])
    assert encoder.cut_of("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n") == 30
    assert encoder.cut_of("no special token") == 0
    assert Encoder(TOKENIZERS["first"]).cut_of("b<|s|>a") == 1


def test_a_token_that_swallows_blanks_on_its_left_is_no_place_to_cut():
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<mask>", lstrip=True, special=True)]}
    )
    encoder = Encoder(tokenizer)
    assert encoder.cut_of("<|im_start|>a  <mask>") == 0
    assert encoder.cut_of("b<|im_start|>a  <mask>") == 1


def test_a_length_limit_in_the_tokenizers_own_file_does_not_cut():
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    assert len(Encoder(tokenizer).encode(["abcdefgh " * 3])[0].ids) > 3
    assert len(Encoder(tokenizer).encode(["a"])[0].ids) == 1
