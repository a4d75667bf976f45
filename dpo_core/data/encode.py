"""Rendered conversations -> token ids and the tokens of given characters, with the prompt of a pair tokenised once.

A tokenizer splits text at its special tokens before anything else and treats the pieces apart, so text cut right
before a special token has exactly the ids of its two halves (a test holds this against whole tokenisation). The two
sides of a pair are cut at the last special token of their prompt, e.g. ``<|im_start|>`` of the answer: on 512 rows of
hh-rlhf this halves the tokenizer's work. Templates without special tokens are tokenised whole. Within the parts, known
tokenizers are spared the words they met before (``word_cache``).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dpo_core.data.word_cache import WordCache, WordText, token_at

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

_NO_IDS = np.zeros(0, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class WholeText:
    """A text's tokens, as the tokenizer makes them of the whole text."""

    encoding: "Encoding"

    @property
    def ids(self) -> np.ndarray:
        """Token ids, int32 [T]."""
        return np.array(self.encoding.ids, dtype=np.int32)

    def token_at(self, position: int, exact: bool) -> int:
        """Return the first token that begins at or after a character; with ``exact`` False, that reaches beyond it."""
        return token_at(self.encoding, position, exact)


class EncodedText(NamedTuple):
    """A text's tokens: those of its first ``cut`` characters (``head``, shared with another text), then ``tail``'s."""

    ids: np.ndarray  # int32 [T]
    cut: int
    num_head_tokens: int
    head: WholeText | WordText | None
    tail: WholeText | WordText

    def token_at(self, position: int, exact: bool = True) -> int:
        """Return the first token that begins at or after character ``position``; with ``exact`` False, that reaches beyond
        it.

        Returns T if there is none.
        """
        if self.head is not None and position < self.cut:
            return self.head.token_at(position, exact)
        return self.num_head_tokens + self.tail.token_at(position - self.cut, exact)


class Encoder:
    """Encodes texts with a fast tokenizer; special tokens in the text are recognised, none is added."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._backend = tokenizer.backend_tokenizer
        # Lengths are handled by the caller; a tokenizer.json may carry settings of its own.
        self._backend.no_truncation()
        self._backend.no_padding()
        # Special tokens are found in the raw text, longest first, before normalisation.
        special = [
            token for token in self._backend.get_added_tokens_decoder().values() if not token.normalized
        ]
        # One that swallows blanks on its left or needs a word's edge looks at what stands before it.
        self._independent = {token.content for token in special if not token.lstrip and not token.single_word}
        longest_first = sorted((token.content for token in special), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        beginnings = {token[:1] for token in longest_first}
        # A character with which all begin, and that none has anywhere else, so that no two of them can overlap.
        self._mark = beginnings.pop() if len(beginnings) == 1 else ""
        if any(self._mark in token[1:] for token in longest_first):
            self._mark = ""
        self._words = WordCache.of(self._backend)

    def cut_of(self, prompt: str) -> int:
        """Return where the last special token of ``prompt`` begins, 0 if there is none to cut at."""
        if self._special is None:
            return 0
        found = self._from_the_end(prompt) if self._mark else reversed(list(self._special.finditer(prompt)))
        return next((match.start() for match in found if match.group() in self._independent), 0)

    def _from_the_end(self, prompt: str) -> Iterator[re.Match[str]]:
        """Special tokens, the last one first: only what is asked for is looked for."""
        assert self._special is not None
        place = len(prompt)
        while (place := prompt.rfind(self._mark, 0, place)) >= 0:
            if match := self._special.match(prompt, place):
                yield match

    def encode(self, texts: Sequence[str]) -> Sequence[WholeText | WordText]:
        """Return the tokens of texts."""
        if self._words is not None:
            return [self._words.encode(text) for text in texts]
        return self.encode_whole(texts)

    def prefix_tokens(self, encoded: EncodedText, text: str, end: int) -> int | None:
        """Return how many tokens the first ``end`` characters of ``text`` have by themselves, where ``encoded``, which is
        that text's, begins with them. None where it does not, or where to know it they would have to be read again."""
        if isinstance(encoded.tail, WordText) and end > encoded.cut:
            before = encoded.tail.tokens_before(end - encoded.cut)
            if before is not None:
                return encoded.num_head_tokens + before
        special = self._special.match(text, encoded.cut) if encoded.cut and self._special else None
        if (special.end() if special else 0) > end or (not special and self._words is None):
            return None
        (rest,) = self.encode([text[encoded.cut : end]])
        first, number = encoded.num_head_tokens, encoded.num_head_tokens + len(rest.ids)
        return number if np.array_equal(encoded.ids[first:number], rest.ids) else None

    def encode_whole(self, texts: Sequence[str]) -> list[WholeText]:
        """Return the tokens of texts, by the tokenizer alone: the slow twin."""
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False) if texts else []
        return [WholeText(encoding) for encoding in encodings]

    def encode_pairs(
        self, pairs: Sequence[tuple[str, str]], prompts: Sequence[str]
    ) -> list[tuple[EncodedText, EncodedText]]:
        """Return both texts of each pair. A ``prompt`` that both begin with is tokenised once; pass "" for none."""
        shared = [
            left.startswith(prompt) and right.startswith(prompt)
            for (left, right), prompt in zip(pairs, prompts, strict=True)
        ]
        cuts = [self.cut_of(prompt) if both else 0 for prompt, both in zip(prompts, shared, strict=True)]
        heads = iter(self.encode([prompt[:cut] for prompt, cut in zip(prompts, cuts, strict=True) if cut]))
        tails = self.encode([text[cut:] for texts, cut in zip(pairs, cuts, strict=True) for text in texts])
        encoded = []
        for i, cut in enumerate(cuts):
            head = next(heads) if cut else None
            head_ids = _NO_IDS if head is None else head.ids
            left, right = (
                EncodedText(np.concatenate([head_ids, tail.ids]), cut, len(head_ids), head, tail)
                for tail in tails[2 * i : 2 * i + 2]
            )
            encoded.append((left, right))
        return encoded
