"""Which words two texts do not share, so that a reader sees at once what training changed in an answer. Pure."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

# A word and the blanks behind it; a sign of ASCII and a character of Chinese or Japanese stand alone. What belongs to a
# character (variants, joined emoji) stays with it: apart it would be shown as an escape.
OF_THE_ONE_BEFORE = "\u200c\u200d\ufe00-\ufe0f\u20e3\U000e0100-\U000e01ef"
UNIT = re.compile(
    rf"((?:[!-/:-@\[-`{{-~]|[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])[{OF_THE_ONE_BEFORE}]*"
    r"|[^\s!-/:-@\[-`{-~\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+)(\s*)|\s+"
)
MOST_UNITS = 2_000  # of a text; comparing takes their product
LEAST_SHARED = 0.2  # below, two texts say different things, and nearly every word would be marked
Run = tuple[str, bool]  # a text, and whether the other side lacks it


def word_diff(before: str, after: str) -> tuple[list[Run], list[Run]]:
    """Return both texts in runs of words that they share or not. Joined they are the texts. Nothing is told apart where
    they are too long or have little in common."""
    old, new = _units(before), _units(after)
    whole = ([(before, False)], [(after, False)])
    if before == after or max(len(old), len(new)) > MOST_UNITS:
        return whole
    found = SequenceMatcher(None, [word for word, _ in old], [word for word, _ in new])
    if found.ratio() < LEAST_SHARED:
        return whole
    before_runs, after_runs = list[Run](), list[Run]()
    for kind, old_from, old_to, new_from, new_to in found.get_opcodes():
        before_runs += _runs(old[old_from:old_to], kind != "equal")
        after_runs += _runs(new[new_from:new_to], kind != "equal")
    return before_runs, after_runs


def _units(text: str) -> list[tuple[str, str]]:
    """Words, each with the blanks behind it; blanks at the beginning have no word."""
    return [(found[1] or "", found[2] if found[1] else found[0]) for found in UNIT.finditer(text)]


def _runs(units: Sequence[tuple[str, str]], is_changed: bool) -> list[Run]:
    """One run, and the blanks behind it by themselves: they are not marked."""
    text = "".join(word + blanks for word, blanks in units)
    marked = text.rstrip() if is_changed else text
    return [run for run in ((marked, is_changed), (text[len(marked) :], False)) if run[0]]
