"""Rendered conversations -> token ids and the tokens of given characters, with the prompt of a pair tokenised once.

A tokenizer splits text at its special tokens before anything else and treats the pieces apart, so text cut right
before a special token has exactly the ids of its two halves (a test holds this against whole tokenisation). The two
sides of a pair are cut at the last special token of their prompt, e.g. ``<|im_start|>`` of the answer: on 512 rows of
hh-rlhf this halves the tokenizer's work. Templates without special tokens are tokenised whole.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A text's tokens: those of its first ``cut`` characters (``head``, shared with another text), then ``tail``'s."""

    ids: np.ndarray  # int32 [T]
    cut: int
    head: "Encoding | None"
    tail: "Encoding"

    def token_at(self, position: int, exact: bool = True) -> int:
        """First token that begins at or after character ``position``; with ``exact`` False, that reaches beyond it.

        Returns T if there is none.
        """
        if self.head is None:
            return _token_at(self.tail, position, exact)
        if position >= self.cut:
            return len(self.head) + _token_at(self.tail, position - self.cut, exact)
        return _token_at(self.head, position, exact)


def _token_at(encoding: "Encoding", position: int, exact: bool) -> int:
    index = encoding.char_to_token(position)
    if index is None:  # the tokenizer dropped this character, or it is the end of the text: look at all offsets
        edges = [start if exact else end - 1 for start, end in encoding.offsets]
        return next((i for i, edge in enumerate(edges) if edge >= position), len(edges))
    while exact and index < len(encoding) and encoding.token_to_chars(index)[0] < position:
        index += 1
    return index


class Encoder:
    """Encodes texts with a fast tokenizer; special tokens in the text are recognised, none is added."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._backend = tokenizer.backend_tokenizer
        # Lengths are handled by the caller; a tokenizer.json may carry settings of its own.
        self._backend.no_truncation()
        self._backend.no_padding()
        # Special tokens are found in the raw text, longest first, before normalisation.
        special = [token for token in self._backend.get_added_tokens_decoder().values() if not token.normalized]
        # One that swallows blanks on its left or needs a word's edge looks at what stands before it.
        self._independent = {token.content for token in special if not token.lstrip and not token.single_word}
        longest_first = sorted((token.content for token in special), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def cut_of(self, prompt: str) -> int:
        """Where the last special token of ``prompt`` begins, 0 if there is none to cut at."""
        if self._special is None:
            return 0
        return next((match.start() for match in reversed(list(self._special.finditer(prompt)))
                     if match.group() in self._independent), 0)

    def encode(self, texts: Sequence[str]) -> list["Encoding"]:
        """Encodings of whole texts."""
        return self._backend.encode_batch(list(texts), add_special_tokens=False) if texts else []

    def encode_pairs(self, pairs: Sequence[tuple[str, str]],
                     prompts: Sequence[str]) -> list[tuple[EncodedText, EncodedText]]:
        """Both texts of each pair. A ``prompt`` that both begin with is tokenised once; pass "" for none."""
        shared = [left.startswith(prompt) and right.startswith(prompt)
                  for (left, right), prompt in zip(pairs, prompts, strict=True)]
        cuts = [self.cut_of(prompt) if both else 0 for prompt, both in zip(prompts, shared, strict=True)]
        heads = iter(self.encode([prompt[:cut] for prompt, cut in zip(prompts, cuts, strict=True) if cut]))
        tails = self.encode([text[cut:] for texts, cut in zip(pairs, cuts, strict=True) for text in texts])
        encoded = []
        for i, cut in enumerate(cuts):
            head = next(heads) if cut else None
            head_ids = np.array(head.ids if head is not None else [], dtype=np.int32)
            left, right = (EncodedText(np.concatenate([head_ids, np.array(tail.ids, dtype=np.int32)]), cut, head, tail)
                           for tail in tails[2 * i:2 * i + 2])
            encoded.append((left, right))
        return encoded
