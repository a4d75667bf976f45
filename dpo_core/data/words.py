"""Texts as words and runs of words as numbers: what near duplicates and overlaps with evaluation sets are counted in.

Words are as Elasticsearch's standard analyser has them, which Tulu 3's decontamination searches with: letters, digits
and underscores, in lower case, punctuation left out; scripts without blanks character by character. Hashes are 64 bits
wide and the same in every process and on every machine.
"""

import hashlib
import re

import numpy as np

MAX_WORDS = 1 << 17  # about 15 MB; beyond, the dictionary starts anew
_SINGLE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"  # kana, Han, Hangul
_ASCII_WORD, _WORD = re.compile(r"[a-z0-9_]+"), re.compile(rf"[{_SINGLE}]|(?:(?![{_SINGLE}])\w)+")
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, from the golden ratio


def words_of(text: str) -> list[str]:
    """Split a text into words; for a text of signs alone its signs are one word, so that "!" is not "?"."""
    lower = text.lower()
    words = (_ASCII_WORD if lower.isascii() else _WORD).findall(lower)
    return words or list(filter(None, [lower.strip()]))


class WordHashes(dict[str, int]):
    """Word -> its 64-bit hash."""

    def __missing__(self, word: str) -> int:
        value = int.from_bytes(
            hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little"
        )
        if len(self) >= MAX_WORDS:
            self.clear()
        self[word] = value
        return value

    def ngrams(self, words: list[str], n: int) -> np.ndarray:
        """Return hashes of each run of ``n`` words, uint64 [max(0, number of words - n + 1)]."""
        count = len(words) - n + 1
        if count <= 0:
            return np.zeros(0, dtype=np.uint64)
        hashes = np.array([self[word] for word in words], dtype=np.uint64)
        runs = np.zeros(count, dtype=np.uint64)
        for first in range(n):
            runs = runs * FACTOR + hashes[first : first + count]
        return runs ^ (runs >> np.uint64(29))

    def shingles(self, text: str, n: int) -> np.ndarray:
        """Return the different runs of ``n`` words of a text, as ascending hashes uint64 [k]; a shorter text is one run."""
        words = words_of(text)
        return np.unique(self.ngrams(words, min(n, len(words)) or 1))


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Return the shared part of two sets of different hashes; 1 of two empty ones."""
    shared = len(np.intersect1d(left, right, assume_unique=True))
    union = len(left) + len(right) - shared
    return shared / union if union else 1.0
