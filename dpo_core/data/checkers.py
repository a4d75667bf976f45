"""Verifiable instructions: rules about an answer's form that code can decide, after IFEval (arXiv 2311.07911).

A constraint is ``{"name": <key of CHECKERS>, **arguments}``, for example ``{"name": "max_words", "limit": 20}``. A row
of preference data carries the constraints of its prompt, so that answers can be judged before and after training
without a judge model. Each checker is a pure function of the answer with surrounding white space removed.
"""

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence

from dpo_core.contract.errors import DataError

SENTENCE_END = re.compile(r"[.!?]+[\"')\]]*(?=\s|$)")
ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|vs|etc|e\.g|i\.e|[A-Z])\.(?=\s+\S)")
LIST_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+", re.MULTILINE)
CLOSE = 0.85  # of difflib's ratio: "max_word" and "lowercase", not "length_constraints:number_words"
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


def one_sentence(answer: str) -> bool:
    """Return whether it is exactly one sentence, closed by ``.``, ``!`` or ``?``, on one line."""
    return "\n" not in answer and num_sentences(answer) == 1 and SENTENCE_END.search(answer) is not None


def max_words(answer: str, limit: int) -> bool:
    """Return whether it has at most ``limit`` words."""
    return num_words(answer) <= limit


def min_words(answer: str, limit: int) -> bool:
    """Return whether it has at least ``limit`` words."""
    return num_words(answer) >= limit


def lower_case(answer: str) -> bool:
    """Return whether it has no capital letter, and some letter."""
    return answer == answer.lower() and answer != answer.upper()


def upper_case(answer: str) -> bool:
    """Return whether it has no small letter, and some letter."""
    return answer == answer.upper() and answer != answer.lower()


def no_list(answer: str) -> bool:
    """Return whether it has no line that begins as a bullet or a numbered item."""
    return LIST_ITEM.search(answer) is None


def no_commas(answer: str) -> bool:
    """Return whether it has no comma."""
    return "," not in answer


def no_digits(answer: str) -> bool:
    """Return whether it has no digit."""
    return not any(letter.isdigit() for letter in answer)


def starts_with(answer: str, phrase: str) -> bool:
    """Return whether it begins with ``phrase`` as written, not followed by more letters of the same word."""
    return answer.startswith(phrase) and re.match(r"\w", answer[len(phrase) :]) is None


def ends_with(answer: str, phrase: str) -> bool:
    """Return whether it ends with ``phrase`` as written."""
    return answer.endswith(phrase)


def contains(answer: str, word: str) -> bool:
    """Return whether it has ``word`` as a whole word, in any case."""
    # A longer word is not looked for: to compile one of megabytes takes minutes.
    return (
        len(word) <= len(answer)
        and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE) is not None
    )


def excludes(answer: str, word: str) -> bool:
    """Return whether it does not have ``word`` as a whole word, in any case."""
    return not contains(answer, word)


def quoted(answer: str) -> bool:
    """Return whether the whole answer stands in one pair of double quotation marks."""
    return len(answer) > 2 and answer[0] == answer[-1] == '"' and '"' not in answer[1:-1]


CHECKERS: dict[str, Callable[..., bool]] = {
    checker.__name__: checker
    for checker in (
        one_sentence,
        max_words,
        min_words,
        lower_case,
        upper_case,
        no_list,
        no_commas,
        no_digits,
        starts_with,
        ends_with,
        contains,
        excludes,
        quoted,
    )
}


def misfit(constraint: Mapping[str, object]) -> str | None:
    """Say why ``check`` could not tell if an answer keeps this constraint, None if it could. An argument that is None
    counts as absent."""
    arguments = {key: value for key, value in constraint.items() if value is not None and key != "name"}
    name = constraint.get("name")
    if name not in CHECKERS:
        return f"{name!r} is no known instruction"
    parameters = list(inspect.signature(CHECKERS[name]).parameters.values())[1:]  # the first is the answer
    wanted = {parameter.name: parameter.annotation for parameter in parameters}
    if set(arguments) != set(wanted):
        return f"{name} takes {', '.join(wanted) or 'no arguments'}, got {', '.join(arguments) or 'none'}"
    wrong = [key for key, value in arguments.items() if not _is(value, wanted[key])]
    return (
        f"{name}: {wrong[0]} is {arguments[wrong[0]]!r}, expected {wanted[wrong[0]].__name__}"
        if wrong
        else None
    )


def _is(value: object, kind: type) -> bool:
    """Whether a value is of a kind; a whole number may come as 15.0 from a column with nulls."""
    return type(value) is kind or (kind is int and isinstance(value, float) and value.is_integer())


def is_meant(constraint: Mapping[str, object]) -> bool:
    """Tell whether a constraint is one of ours, perhaps misspelt: sets have columns of that name for rules of their own."""
    name = str(constraint.get("name"))
    return name in CHECKERS or bool(difflib.get_close_matches(name, CHECKERS, n=1, cutoff=CLOSE))


def check(answer: str, constraint: Mapping[str, object]) -> bool:
    """Return whether ``answer`` keeps one constraint. An empty answer keeps none. An argument that is None counts as
    absent.

    Raises ``DataError`` for a name that is not in ``CHECKERS`` or arguments that the checker does not take.
    """
    arguments = {
        key: value for key, value in constraint.items() if value is not None
    }  # Arrow fills absent keys
    name = arguments.pop("name", None)
    if name not in CHECKERS:
        raise DataError(
            f"Constraint {dict(constraint)} names no known instruction: got name {name!r}, expected one of "
            f"{', '.join(sorted(CHECKERS))}. Correct the row's `constraints`."
        )
    stripped = answer.strip()
    try:
        return bool(stripped) and CHECKERS[name](stripped, **arguments)
    except TypeError as error:
        raise DataError(
            f"Constraint {dict(constraint)} does not fit {name}: {error}. Correct the row's `constraints`."
        ) from error


def passes(answer: str, constraints: Sequence[Mapping[str, object]]) -> bool:
    """Return whether ``answer`` keeps every constraint (so with none, always). Raises ``DataError`` like ``check``."""
    return all([check(answer, constraint) for constraint in constraints])
