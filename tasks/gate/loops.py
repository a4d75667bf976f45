"""Answers that say the same again and again, which no reward accuracy sees: what is left of a policy driven too far. Pure.

The share of 4-grams that stood in the answer before, seq-rep-4 of Welleck et al. (arXiv 1908.04319); Holtzman et al. (arXiv
1904.09751) describe how models fall into such loops. Of words; of characters where a
script writes no blanks, and where words are few.
"""

from collections.abc import Iterable

from dpo_core.contract.jobs import AnswerPair
from dpo_core.contract.outcome import Outcome, paired_outcome
from dpo_core.contract.word_count import words_of

N = 4
LOOP = 0.5  # of its 4-grams: people's texts and lists have far less
FEWEST_WORDS, FEWEST_CHARACTERS = 12, 40  # fewer hold no loop to speak of


def repeated(text: str) -> float:
    """Return the share of the 4-grams that are not new, 0 to 1; 0 of a text that is too short."""
    words, between_blanks = words_of(text), text.split()
    has_blanks = len(words) < 2 * len(between_blanks)
    is_of_words = has_blanks and len(words) >= FEWEST_WORDS
    parts = list("".join(between_blanks)) if has_blanks and not is_of_words else words
    if len(parts) < (FEWEST_WORDS if is_of_words else FEWEST_CHARACTERS):
        return 0.0
    grams = [tuple(parts[place : place + N]) for place in range(len(parts) - N + 1)]
    return 1 - len(set(grams)) / len(grams)


def without_loops(label: str, answers: Iterable[AnswerPair]) -> Outcome | None:
    """Return how many answers are no loop, before and after; None where none is one, as chance then has nothing to do."""
    judged = [(repeated(pair.before) < LOOP, repeated(pair.after) < LOOP) for pair in answers]
    return None if all(before and after for before, after in judged) else paired_outcome(label, judged)
