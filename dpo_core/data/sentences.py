"""Words and sentences of an answer, counted without a model."""

import re

CLOSERS = "\"')\\]”“’»«*_"  # quotes, brackets and Markdown's emphasis that end with a sentence
SENTENCE_END = re.compile(rf"[.!?]+[{CLOSERS}]*(?=\s|$)")
ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|vs|etc|e\.g|i\.e|[A-Z])\.(?=\s+\S)")
WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")


def num_words(answer: str) -> int:
    """Count words: runs of letters and digits; an inner apostrophe or hyphen joins ("don't" is one)."""
    return len(WORD.findall(answer))


def sentence_ends(answer: str) -> tuple[int, bool]:
    """Count runs of ``.!?`` before white space or the end, what closes quotes, brackets and emphasis between, abbreviations
    apart. Returns the count and whether text follows the last of them."""
    plain = ABBREVIATION.sub("x", answer.strip())
    ends = list(SENTENCE_END.finditer(plain))
    tail = plain[ends[-1].end() :] if ends else plain
    return len(ends), bool(tail.strip())


def num_sentences(answer: str) -> int:
    """Count sentences; text after the last one's end is one more."""
    ends, is_open = sentence_ends(answer)
    return ends + is_open
