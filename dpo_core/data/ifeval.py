"""The 25 instructions of IFEval (arXiv 2311.07911), under its names and with its arguments.

Each is a function of the answer **as it was given** that decides as the published definition does. Meant differences:

- keywords, words and section names are texts, not regular expressions;
- sentences are counted as ``one_sentence`` counts them, not by a trained model;
- a language is told by ``dpo_core.data.languages``;
- ``keywords:letter_frequency`` counts the character that the row names, also where it is no letter;
- postscript markers other than ``P.S.`` and ``P.P.S`` are texts, not regular expressions;
- words in capitals are told apart by rules: "CANNOT" and "GONNA" are one word, not two.
"""

import json
import re
from collections.abc import Callable

from dpo_core.data.ifeval_arguments import Language, Relation
from dpo_core.data.languages import possible_languages
from dpo_core.data.sentences import num_sentences as sentences_of

PLACEHOLDER = re.compile(r"\[.*?\]")
TITLE = re.compile(r"<<([^\n]+)>>")
STAR_ITEM = re.compile(r"^\s*\*[^*].*$", re.MULTILINE)
DASH_ITEM = re.compile(r"^\s*-.*$", re.MULTILINE)
STARRED = re.compile(r"\*([^\n*]*)\*")
TWICE_STARRED = re.compile(r"\*\*([^\n*]*)\*\*")
DIVIDER = re.compile(r"\s?\*\*\*\s?")
FENCE = re.compile(r"\A```(?:json|Json|JSON)?")
POSTSCRIPTS = {"P.S.": re.compile(r"p\.\s?s\."), "P.P.S": re.compile(r"p\.\s?p\.\s?s")}
FIXED_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
# A word's end that counts as a word of its own where words are counted: don't -> do n't, it's -> it 's.
CONTRACTION = re.compile(r"(?<=\w)(?=n['’]t\b)|(?<=\w)(?=['’](?:s|m|d|re|ve|ll)\b)", re.IGNORECASE)
WORD_END = re.compile(r"""\s+|--+|\.\.+|[,:](?!\d)|[()\[\]{}<>;!?"“”«»…#$%&@]""")


def _holds(number: int, relation: Relation, bound: int) -> bool:
    """``less than`` is strict; everything else is ``at least``."""
    return number < bound if relation == "less than" else number >= bound


def _times(text: str, answer: str, around: str = "{}") -> int:
    """How often ``text`` stands in ``answer`` in any case. A longer text is not looked for: to compile it takes minutes."""
    if len(text) > len(answer):
        return 0
    return sum(1 for _ in re.finditer(around.format(re.escape(text)), answer, re.IGNORECASE))


def existence(answer: str, keywords: list[str]) -> bool:
    """Return whether every keyword stands somewhere, within a word too, in any case."""
    return all(_times(keyword, answer) for keyword in keywords)


def frequency(answer: str, keyword: str, frequency: int, relation: Relation) -> bool:
    """Return whether ``keyword`` stands there so often, within words too, in any case."""
    return _holds(_times(keyword.strip(), answer), relation, frequency)


def forbidden_words(answer: str, forbidden_words: list[str]) -> bool:
    """Return whether none of the words stands there as a whole word, in any case."""
    return not any(_times(word, answer, r"\b{}\b") for word in forbidden_words)


def letter_frequency(answer: str, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    """Return whether ``letter`` occurs so often, small and capital together."""
    return _holds(answer.lower().count(letter.strip().lower()), let_relation, let_frequency)


def response_language(answer: str, language: Language) -> bool:
    """Return whether nothing speaks against the answer's being in ``language``."""
    return language in possible_languages(answer)


def number_sentences(answer: str, num_sentences: int, relation: Relation) -> bool:
    """Return whether it has so many sentences."""
    return _holds(sentences_of(answer), relation, num_sentences)


def number_paragraphs(answer: str, num_paragraphs: int) -> bool:
    """Return whether ``***`` divides it into exactly so many paragraphs, with something between any two dividers."""
    parts = [bool(part.strip()) for part in DIVIDER.split(answer)]
    return all(parts[1:-1]) and sum(parts) == num_paragraphs


def number_words(answer: str, num_words: int, relation: Relation) -> bool:
    r"""Return whether it has so many words, runs of ``\w``: "don't" is two."""
    return _holds(len(re.findall(r"\w+", answer)), relation, num_words)


def nth_paragraph_first_word(answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Return whether empty lines divide it into so many paragraphs and the n-th begins with ``first_word`` in any case.

    Blank ones are not counted, but have a place in the order, as in the published definition.
    """
    parts = answer.split("\n\n")
    filled = sum(bool(part.strip()) for part in parts)
    place = int(nth_paragraph)  # 2.0 where its column has nulls
    if filled != num_paragraphs or not 1 <= place <= filled or not parts[place - 1].strip():
        return False
    word = parts[place - 1].split()[0].lstrip("'").lstrip('"')
    return re.split(r"""[.,?!'"]""", word)[0].lower() == first_word.lower()


def number_placeholders(answer: str, num_placeholders: int) -> bool:
    """Return whether it has at least so many placeholders as ``[address]``."""
    return len(PLACEHOLDER.findall(answer)) >= num_placeholders


def postscript(answer: str, postscript_marker: str) -> bool:
    """Return whether it has a postscript that begins with the marker in any case; blanks may stand within ``P. S.``."""
    marker, lower = postscript_marker.strip(), answer.lower()
    pattern = POSTSCRIPTS.get(marker)
    return marker.lower() in lower if pattern is None else pattern.search(lower) is not None


def number_bullet_lists(answer: str, num_bullets: int) -> bool:
    """Return whether exactly so many lines are items that begin with ``*`` or ``-``."""
    return len(STAR_ITEM.findall(answer)) + len(DASH_ITEM.findall(answer)) == num_bullets


def constrained_response(answer: str) -> bool:
    """Return whether it has "My answer is yes." (or no, or maybe) as written."""
    return any(fixed in answer for fixed in FIXED_ANSWERS)


def number_highlighted_sections(answer: str, num_highlights: int) -> bool:
    """Return whether it has at least so many parts within ``*`` or ``**``, on one line and not blank."""
    parts = [*STARRED.findall(answer), *TWICE_STARRED.findall(answer)]
    return sum(bool(part.strip()) for part in parts) >= num_highlights


def multiple_sections(answer: str, section_spliter: str, num_sections: int) -> bool:
    """Return whether the section's name and a number ("Section 1") stand there at least so often, in this case."""
    name = section_spliter.strip()
    if len(name) > len(answer):
        return num_sections <= 0
    return len(re.findall(rf"{re.escape(name)}\s?\d+", answer)) >= num_sections


def json_format(answer: str) -> bool:
    """Return whether all of it is JSON, a fence of three back quotes around it aside."""
    inner = FENCE.sub("", answer.strip()).removesuffix("```").strip()
    try:
        json.loads(inner)
    except (ValueError, RecursionError):
        return False
    return True


def title(answer: str) -> bool:
    """Return whether it has a title as ``<<a title>>``, on one line."""
    return any(found.lstrip("<").rstrip(">").strip() for found in TITLE.findall(answer))


def two_responses(answer: str) -> bool:
    """Return whether six stars divide it into two different answers."""
    parts = [part.strip() for part in answer.split("******")]
    filled = [part for part in parts if part]
    return all(parts[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


def repeat_prompt(answer: str, prompt_to_repeat: str) -> bool:
    """Return whether it begins with the request, in any case."""
    return answer.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(answer: str, end_phrase: str) -> bool:
    """Return whether it ends with the phrase in any case, quotation marks after it aside."""
    return answer.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def capital_word_frequency(answer: str, capital_frequency: int, capital_relation: Relation) -> bool:
    """Return whether so many words are in capital letters. Words joined by a hyphen are one; "I'M" is two."""
    pieces = (piece.strip("'`‘’*") for piece in WORD_END.split(answer))
    words = (part for piece in pieces for part in CONTRACTION.split(piece))
    return _holds(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def english_capital(answer: str) -> bool:
    """Return whether all its letters are capitals and it may be English."""
    return answer.isupper() and "en" in possible_languages(answer)


def english_lowercase(answer: str) -> bool:
    """Return whether all its letters are small and it may be English."""
    return answer.islower() and "en" in possible_languages(answer)


def no_comma(answer: str) -> bool:
    """Return whether it has no comma."""
    return "," not in answer


def quotation(answer: str) -> bool:
    """Return whether double quotation marks stand around it."""
    bare = answer.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


_GROUPS: dict[str, tuple[Callable[..., bool], ...]] = {
    "keywords": (existence, frequency, forbidden_words, letter_frequency),
    "language": (response_language,),
    "length_constraints": (number_sentences, number_paragraphs, number_words, nth_paragraph_first_word),
    "detectable_content": (number_placeholders, postscript),
    "detectable_format": (
        number_bullet_lists,
        constrained_response,
        number_highlighted_sections,
        multiple_sections,
        json_format,
        title,
    ),
    "combination": (two_responses, repeat_prompt),
    "startend": (end_checker, quotation),
    "change_case": (capital_word_frequency, english_capital, english_lowercase),
    "punctuation": (no_comma,),
}
INSTRUCTIONS: dict[str, Callable[..., bool]] = {
    f"{group}:{checker.__name__}": checker for group, checkers in _GROUPS.items() for checker in checkers
}
"""IFEval's id of an instruction -> its function of the answer and the row's arguments."""


def loosened(answer: str) -> list[str]:
    """Return the eight texts of IFEval's loose accuracy: without the first line, the last, both; each without ``*``, too."""
    lines = answer.split("\n")
    cut = [answer, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [text for one in cut for text in (one, one.replace("*", ""))]
