"""Verifiable instructions: rules about an answer's form that code can decide, after IFEval (arXiv 2311.07911).

A constraint is ``{"name": <key of CHECKERS>, **arguments}``, for example ``{"name": "max_words", "limit": 20}``. A row
of preference data carries the constraints of its prompt, so that answers can be judged before and after training
without a judge model. Each of ours is a pure function of the answer with surrounding white space removed, each of
IFEval's (``dpo_core.data.ifeval``) of the answer as it was given.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dpo_core.contract.errors import DataError
from dpo_core.data.ifeval import INSTRUCTIONS, loosened
from dpo_core.data.ifeval_arguments import misfit_of
from dpo_core.data.sentences import num_words, sentence_ends

LIST_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+", re.MULTILINE)
CLOSE = 0.85  # of difflib's ratio: "max_word" and "lowercase", not "length_constraints:number_words"


def one_sentence(answer: str) -> bool:
    """Return whether it is exactly one sentence, closed by ``.``, ``!`` or ``?``, on one line; "." alone is none."""
    return "\n" not in answer and sentence_ends(answer) == (1, False) and num_words(answer) > 0


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


OURS: dict[str, Callable[..., bool]] = {
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
CHECKERS: dict[str, Callable[..., bool]] = OURS | INSTRUCTIONS


@dataclass(frozen=True, slots=True)
class Judgement:
    """Which constraints of a prompt an answer keeps, in their order: ``strict`` as it stands, ``loose`` where a first or
    last line or the stars of Markdown are passed over (IFEval's two accuracies)."""

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]

    @property
    def passes(self) -> bool:
        """Whether every constraint is kept as the answer stands."""
        return all(self.strict)


def misfit(constraint: Mapping[str, object]) -> str | None:
    """Say why ``check`` could not tell if an answer keeps this constraint, None if it could. An argument that is None
    counts as absent."""
    name, arguments = _taken_apart(constraint)
    checker = CHECKERS.get(name) if isinstance(name, str) else None
    return (
        f"{name!r} is no known instruction" if checker is None else misfit_of(str(name), checker, arguments)
    )


def _taken_apart(constraint: Mapping[str, object]) -> tuple[object, dict[str, object]]:
    """Name and arguments of a constraint; Arrow fills absent keys with None."""
    arguments = {key: value for key, value in constraint.items() if value is not None}
    return arguments.pop("name", None), arguments


def is_meant(constraint: Mapping[str, object]) -> bool:
    """Tell whether a constraint is one of ours, perhaps misspelt, or one of IFEval's with its arguments: sets have
    columns of that name for rules of their own."""
    name = str(constraint.get("name"))
    if name in INSTRUCTIONS:
        return misfit(constraint) is None
    return bool(difflib.get_close_matches(name, OURS, n=1, cutoff=CLOSE))


def check(answer: str, constraint: Mapping[str, object]) -> bool:
    """Return whether ``answer`` keeps one constraint. An empty answer keeps none. An argument that is None counts as
    absent.

    Raises ``DataError`` for a name that is not in ``CHECKERS`` or arguments that the checker does not take.
    """
    name, arguments = _taken_apart(constraint)
    if name not in CHECKERS:
        raise DataError(
            f"Constraint {dict(constraint)} names no known instruction: got name {name!r}, expected one of "
            f"{', '.join(sorted(CHECKERS))}. Correct the row's `constraints`."
        )
    try:
        stripped = answer.strip()
        return bool(stripped) and CHECKERS[name](stripped if name in OURS else answer, **arguments)
    except (TypeError, AttributeError) as error:
        raise DataError(
            f"Constraint {dict(constraint)} does not fit {name}: {error}. Correct the row's `constraints`."
        ) from error


def judge(answer: str, constraints: Sequence[Mapping[str, object]]) -> Judgement:
    """Return which constraints ``answer`` keeps, strictly and loosely. Raises ``DataError`` like ``check``."""
    texts = loosened(answer)
    strict = tuple(check(answer, constraint) for constraint in constraints)
    loose = (
        kept or any(check(text, constraint) for text in texts)
        for kept, constraint in zip(strict, constraints, strict=True)
    )
    return Judgement(strict, tuple(loose))


def passes(answer: str, constraints: Sequence[Mapping[str, object]]) -> bool:
    """Return whether ``answer`` keeps every constraint (so with none, always). Raises ``DataError`` like ``check``."""
    return all([check(answer, constraint) for constraint in constraints])
