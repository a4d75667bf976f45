"""How long an answer is in words, in any script: what stands between blanks, and of scripts that write none each character.

So Unicode's default rules have it for ideographs and Hiragana (UAX #29, table 3); Thai, Lao, Khmer and Burmese would need a
dictionary, and are counted alike, without the signs that stand above or below a character. IFEval's instructions count as
their authors' program does, see ``dpo_core/data/ifeval.py``.
"""

import re
import unicodedata

# Thai and Lao, Burmese, Khmer, kana, ideographs; those beyond the first plane.
OWN = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
)
OWN += "\U00020000-\U0003ffff"
WITHOUT_BLANKS = re.compile(f"[{OWN}]")
PARTS = re.compile(f"[{OWN}]|[^{OWN}]+")


def words_of(text: str) -> list[str]:
    """Return the words of a text; of a text whose script writes blanks ``text.split()``."""
    words = []
    for word in text.split():
        if not WITHOUT_BLANKS.search(word):
            words.append(word)
            continue
        words += [part for part in PARTS.findall(word) if any(map(_counts, part))]
    return words


def _counts(character: str) -> bool:
    """Whether it is a letter or a figure; no punctuation, and no mark of another character."""
    return unicodedata.category(character)[0] in "LN"
