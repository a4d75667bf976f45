"""Words and sentences of an answer, counted without a model."""

import re

SENTENCE_END = re.compile(r"[.!?]+[\"')\]]*(?=\s|$)")
ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|vs|etc|e\.g|i\.e|[A-Z])\.(?=\s+\S)")
WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")


def num_words(answer: str) -> int:
    """Count words: runs of letters and digits; an inner apostrophe or hyphen joins ("don't" is one)."""
    return len(WORD.findall(answer))


def num_sentences(answer: str) -> int:
    """Count runs of ``.!?`` before white space or the end, abbreviations apart; text after the last one is one more."""
    plain = ABBREVIATION.sub("x", answer.strip())
    ends = list(SENTENCE_END.finditer(plain))
    tail = plain[ends[-1].end() :] if ends else plain
    return len(ends) + bool(tail.strip())
