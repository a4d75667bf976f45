"""IFEval's instructions beside the program that was published with them, as lm-evaluation-harness holds it: the same
verdict for every case, and for every answer of any case under every case's arguments.

Where ours tells a language by script and frequent words and theirs asks langdetect, what they differ in is named.
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterator

import langdetect
import nltk
import pytest

from dpo_core.data.checkers import check
from dpo_core.data.ifeval import loosened
from dpo_core.data.languages import possible_languages
from tests.dpo_core.data.test_ifeval import CASES
from tests.dpo_core.data.test_languages import SENTENCES

LANGUAGE, CAPITAL, LOWERCASE = (
    "language:response_language",
    "change_case:english_capital",
    "change_case:english_lowercase",
)
# Theirs counts sentences by a trained model (NLTK's punkt), which no package brings: cases by hand alone.
SENTENCES_BY_A_MODEL = "length_constraints:number_sentences"
ALIKE = sorted(set(CASES) - {LANGUAGE, CAPITAL, LOWERCASE, SENTENCES_BY_A_MODEL})
ANSWERS = sorted({answer for rows in CASES.values() for _, answer, _ in rows})
TEXTS = sorted({text for answer in ANSWERS for text in loosened(answer) if text.strip()})

# Known differences, by the words of a text. A few words, none of which tells English from all others: ours has nothing
# against English, langdetect takes the letters for another language.
NOTHING_AGAINST_ENGLISH = {
    *("milk bread salt", "bread salt", "milk bread", "bread", "milk", "over", "still one"),
    *("a 1 2", "json a 1 2"),
}
IN_CAPITALS = {"A B", "A B C"}
# One frequent word, which is all that ours goes by, among few others: langdetect guesses another one.
ONE_FREQUENT_WORD = {"I saw A plane", "Yes it does", "It rises ANY questions", "Any questions No"}
# In capitals langdetect takes these for English.
CAPITALS_OF_OTHERS = {SENTENCES[language].upper() for language in ("fi", "it", "pl")}

Keeps = Callable[[str, dict, str], bool]


@pytest.fixture(scope="module")
def published() -> Iterator[Keeps]:
    """Its functions by name. It asks for a model of sentences when it is imported, and cuts texts into them before words:
    the words in capitals are the same without. langdetect draws random numbers: here the same ones for each text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.data, "find", lambda resource: resource)
        patch.setattr(nltk, "word_tokenize", functools.partial(nltk.word_tokenize, preserve_line=True))
        patch.setattr(langdetect.DetectorFactory, "seed", 0)
        patch.setattr(langdetect, "detect", functools.cache(langdetect.detect))
        from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

        def keeps(name: str, arguments: dict, answer: str) -> bool:
            instruction = INSTRUCTION_DICT[name](name)
            instruction.build_description(**arguments)
            return bool(answer.strip()) and bool(instruction.check_following(answer))

        assert set(INSTRUCTION_DICT) == set(CASES)
        yield keeps


def ours(name: str, arguments: dict, text: str) -> bool:
    return check(text, {"name": name, **arguments})


def words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text))


@pytest.mark.parametrize("name", ALIKE)
def test_the_verdict_is_that_of_the_published_program(published: Keeps, name: str) -> None:
    arguments_of_cases = [arguments for arguments, _, _ in CASES[name]]
    disagreed = [
        (arguments, text)
        for arguments, answer in itertools.product(arguments_of_cases, ANSWERS)
        for text in dict.fromkeys(loosened(answer))
        if ours(name, arguments, text) is not published(name, dict(arguments), text)
    ]
    assert not disagreed


def test_a_sentence_is_in_the_language_that_langdetect_finds(published: Keeps) -> None:
    """Each of 30 asked for with each of 30 written."""
    for asked, (written, text) in itertools.product(SENTENCES, SENTENCES.items()):
        arguments = {"language": asked}
        assert (
            ours(LANGUAGE, arguments, text) is published(LANGUAGE, arguments, text) is (asked == written)
        ), (asked, written)


def test_of_a_few_words_langdetect_guesses_a_language_where_ours_leaves_it_open(published: Keeps) -> None:
    """Whatever language is asked for: ours lets pass what may be in several, and else differs in what is named."""
    named = set()
    for text, asked in itertools.product(TEXTS, SENTENCES):
        kept = ours(LANGUAGE, {"language": asked}, text)
        if kept is published(LANGUAGE, {"language": asked}, text):
            continue
        if not kept or len(possible_languages(text)) == 1:
            named.add(words(text))
    assert named == ONE_FREQUENT_WORD


def test_english_in_one_case_is_what_it_is_for_the_published_program_but_for_what_is_named(
    published: Keeps,
) -> None:
    texts = [*TEXTS, *(form(one) for one in SENTENCES.values() for form in (str, str.upper, str.lower))]

    def differing(name: str) -> list[tuple[str, bool]]:
        return [
            (text, kept) for text in texts if (kept := ours(name, {}, text)) is not published(name, {}, text)
        ]

    assert {(words(text), kept) for text, kept in differing(CAPITAL)} == {
        *((words(text), False) for text in CAPITALS_OF_OTHERS),
        *((text, True) for text in IN_CAPITALS),
    }
    assert {(words(text), kept) for text, kept in differing(LOWERCASE)} == {
        (text, True) for text in NOTHING_AGAINST_ENGLISH
    }
