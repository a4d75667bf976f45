"""Cached words give what the tokenizer gives for the whole text: ids, and which token stands at a character."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from dpo_core.data import word_cache
from dpo_core.data.encode import WholeText
from dpo_core.data.word_cache import WordCache
from tests.tiny_models import TRAINING_TEXT

# As in the tokenizer.json files of the models, by hand and not from the module under test.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
TEXT = (
    TRAINING_TEXT
    + "I'm don't can't we'll\n\nIt's 1234, (x) \"y\"... \t  é 中文 😀 a\u0301 foo_bar() -- x=1\r\n" * 3
)


def _split(pattern):
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


def _tokenizer(*steps, normalizer=None, post_processor=None, use_regex=False):
    tokenizer = Tokenizer(models.BPE())
    bytes_step = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, bytes_step]) if steps else bytes_step
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=["<|im_start|>", "<|im_end|>", "</s>", "</s></s>"],
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    return tokenizer


KNOWN = {
    "gpt2": _tokenizer(use_regex=True),
    "gpt2, offsets trimmed": _tokenizer(
        use_regex=True, post_processor=processors.ByteLevel(trim_offsets=True)
    ),
    "smollm": _tokenizer(pre_tokenizers.Digits(individual_digits=True), use_regex=True),
    "llama3": _tokenizer(_split(LLAMA3), post_processor=processors.ByteLevel(trim_offsets=True)),
    "qwen2": _tokenizer(_split(QWEN2), normalizer=normalizers.NFC()),
}
# Characters at which readings of Unicode and of the expressions could differ.
PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            [
                " ",
                "  ",
                "\0",
                "\n",
                "\n\n",
                "\r\n",
                "\t",
                "'",
                "'s",
                "'LL",
                ".",
                ",",
                "!",
                "_",
                "(",
                "-",
                "=",
                "0",
                "12",
                "1234",
                "a",
                "B",
                "the",
                "sea",
                "é",
                "e\u0301",
                "\u0301",
                "\u0338",
                "中",
                "😀",
                "\u00a0",
                "\u2028",
                "\u200b",
                "\u0085",
                "\x1c",
                "²",
                "Ⅷ",
                "١",
                "ª",
                "ᄒ",
                "\u1161",
                "\u180e",
                "<|im_start|>",
                "<|im_end|>",
                "</s>",
                "<|im_",
                "|>",
            ]
        ),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=12,
).map("".join)


@pytest.mark.parametrize("name", KNOWN)
@settings(deadline=None, max_examples=400)
@given(text=PIECES)
@example(text="<|im_start|>assistant\n  Yes. ")
@example(text="x\n y  ")
def test_pieces_give_the_ids_and_places_of_the_whole(name, text):
    backend = KNOWN[name]
    words, whole = (
        WordCache.of(backend).encode(text),
        WholeText(backend.encode(text, add_special_tokens=False)),
    )
    assert "".join(piece for piece, _ in WordCache.of(backend).pieces(text)) == text
    assert words.ids.tolist() == whole.ids.tolist()
    for position in range(len(text) + 1):
        for exact in (True, False):
            assert words.token_at(position, exact) == whole.token_at(position, exact), (position, exact)
        if (before := words.tokens_before(position)) is not None:
            alone = backend.encode(text[:position], add_special_tokens=False)
            assert alone.ids == words.ids[:before].tolist(), position


def test_ordinary_text_is_cut_into_words_that_are_found_again():
    cache = WordCache.of(KNOWN["gpt2"])
    assert [piece for piece, _ in cache.pieces("<|im_start|>user\nDon't go, Bob (now)!<|im_end|>")] == [
        "<|im_start|>",
        "user",
        "\n",
        "Don't",
        " go",
        ",",
        " Bob",
        " (now",
        ")!",
        "<|im_end|>",
    ]
    cache.encode("the sea, the sea!")
    assert (set(cache._first), set(cache._words), set(cache._last)) == ({"the"}, {"sea,", "the"}, {"sea!"})
    assert set(cache._pieces) >= {"the", " sea", ",", " the", "!"}


@pytest.mark.parametrize(
    ("name", "alone"), [("gpt2", False), ("smollm", True), ("llama3", False), ("qwen2", True)]
)
def test_numbers_are_made_of_ten_digits_where_each_is_a_word(name, alone):
    cache = WordCache.of(KNOWN[name])
    number, year = (["[1", "2", "3", "4"], [" 1", "9", "9", "9"]) if alone else (["[1234"], [" 1999"])
    pieces = [piece for piece, _ in cache.pieces("x[1234] = 1999")]
    assert pieces == ["x", *number, "]", " =", *year]
    for value in range(1000, 2000):
        cache.ids(f"the year {value}")
    assert sum(piece.strip().isdigit() for piece in cache._pieces) == (11 if alone else 1000)


@pytest.mark.parametrize(
    "text",
    [
        "a  b",
        "a   b",
        "  a",
        "a  ",
        "a  \0b",
        "\0 a",
        "a\n b",
        "a ",
        " a",
        "\u2028 a",
        "a \n",
        "“a” b",
        "a <|im_end|> b",
        "",
    ],
)
def test_blanks_that_are_no_certain_cut_are_left_to_the_pieces(text):
    for backend in KNOWN.values():
        assert WordCache.of(backend).ids(text).tolist() == backend.encode(text, add_special_tokens=False).ids


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(word_cache, "MAX_WORDS", 3)
    cache = WordCache.of(KNOWN["gpt2"])
    for text in ("a b c d e", "e d c b a", "x" * 100):
        assert cache.encode(text).ids.tolist() == KNOWN["gpt2"].encode(text).ids
        for held in (cache._words, cache._pieces, cache._first, cache._last, cache._only):
            assert len(held) <= 3
            assert len(held.older) <= 3
    assert "x" * 100 not in cache._only


def test_a_word_that_comes_again_outlives_those_that_do_not(monkeypatch):
    monkeypatch.setattr(word_cache, "MAX_WORDS", 2)
    made, make = [], word_cache._Words.make
    monkeypatch.setattr(word_cache._Words, "make", lambda words, word: made.append(word) or make(words, word))
    cache = WordCache.of(KNOWN["gpt2"])
    for number in range(20):
        cache.ids(f"x the w{number} end")
    assert (made.count("the"), made.count("w0"), len(cache._words.older)) == (1, 1, 2)


def _with_token(token):
    tokenizer = _tokenizer(use_regex=True)
    tokenizer.add_special_tokens([token])
    return tokenizer


def _with_dropout():
    tokenizer = _tokenizer(use_regex=True)
    tokenizer.model.dropout = 0.1
    return tokenizer


@pytest.mark.parametrize(
    "backend",
    [
        _tokenizer(_split(r"\w+")),
        _tokenizer(),
        _tokenizer(use_regex=True, normalizer=normalizers.Lowercase()),
        _tokenizer(_split(LLAMA3), use_regex=True),
        _with_token(AddedToken("<mask>", lstrip=True)),
        _with_token(AddedToken("<n>", normalized=True)),
        _with_dropout(),
        Tokenizer(models.Unigram([("a", 0.0)], unk_id=0)),
    ],
    ids=[
        "other expression",
        "none",
        "lowercase",
        "two expressions",
        "lstrip",
        "normalised token",
        "dropout",
        "unigram",
    ],
)
def test_a_tokenizer_of_another_make_has_no_cache(backend):
    assert WordCache.of(backend) is None
