"""IFEval's 25 instructions against answers judged by hand."""

import time

import pytest

from dpo_core.contract.drops import RowDropped
from dpo_core.data.checkers import check, judge, misfit
from dpo_core.data.formats import to_pair
from dpo_core.data.ifeval import INSTRUCTIONS, loosened

LESS, LEAST = "less than", "at least"
# Instruction -> (arguments, answer, kept), each worked out from the definition by hand.
CASES: dict[str, list[tuple[dict, str, bool]]] = {
    "keywords:existence": [
        ({"keywords": ["sea", "Blue"]}, "The SEA is blueish.", True),  # any case, within a word
        ({"keywords": ["sea", "green"]}, "The sea is blue.", False),
    ],
    "keywords:frequency": [
        ({"keyword": "sea", "frequency": 2, "relation": LEAST}, "Sea by the seaside", True),
        ({"keyword": "sea", "frequency": 2, "relation": LESS}, "Sea by the seaside", False),
        ({"keyword": "sea", "frequency": 2, "relation": LESS}, "One sea", True),
        ({"keyword": " sea ", "frequency": 2, "relation": LEAST}, "One sea", False),
    ],
    "keywords:forbidden_words": [
        ({"forbidden_words": ["sea", "sky"]}, "The seaside is fine.", True),  # whole words only
        ({"forbidden_words": ["sea", "sky"]}, "The Sky, alas.", False),
    ],
    "keywords:letter_frequency": [
        ({"letter": "A", "let_frequency": 3, "let_relation": LEAST}, "A banana", True),
        ({"letter": "a", "let_frequency": 4, "let_relation": LESS}, "A banana", False),
        ({"letter": "q", "let_frequency": 1, "let_relation": LESS}, "A banana", True),
    ],
    "language:response_language": [
        ({"language": "de"}, "Das Brot geht auf, weil die Hefe Gas macht.", True),
        ({"language": "de"}, "Bread rises because yeast makes gas in the dough.", False),
        ({"language": "hi"}, "यह रोटी है और वह पानी है।", True),
        ({"language": "mr"}, "यह रोटी है और वह पानी है।", False),
    ],
    "length_constraints:number_sentences": [
        ({"num_sentences": 2, "relation": LEAST}, "Dr. Lee came. He sat!", True),
        ({"num_sentences": 3, "relation": LEAST}, "Dr. Lee came. He sat!", False),
        ({"num_sentences": 2, "relation": LESS}, "Only one", True),
        ({"num_sentences": 2, "relation": LESS}, "One. Two.", False),
    ],
    "length_constraints:number_paragraphs": [
        ({"num_paragraphs": 2}, "One\n\nstill one\n***\nTwo", True),
        ({"num_paragraphs": 2}, "***\nOne\n***\nTwo\n***", True),  # outer dividers close nothing
        ({"num_paragraphs": 2}, "One\n***\n***\nTwo", False),  # nothing between two of them
        ({"num_paragraphs": 1}, "One\n***\nTwo", False),
    ],
    "length_constraints:number_words": [
        ({"num_words": 4, "relation": LEAST}, "Don't stop now", True),  # don, t, stop, now
        ({"num_words": 4, "relation": LESS}, "Don't stop now", False),
        ({"num_words": 4, "relation": LESS}, "Stop right now!", True),
        ({"num_words": 4, "relation": LEAST}, "Stop right now!", False),
    ],
    "length_constraints:nth_paragraph_first_word": [
        (
            {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Yeast"},
            'Bread rises.\n\n"yeast," he said.',
            True,
        ),
        ({"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "yeast"}, "Bread.\n\nYeast.", False),
        ({"num_paragraphs": 3, "nth_paragraph": 1, "first_word": "bread"}, "Bread.\n\nYeast.", False),
        (
            {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "bread"},
            "\n\nBread.",
            False,
        ),  # the first is blank
    ],
    "detectable_content:number_placeholders": [
        ({"num_placeholders": 2}, "To [name], at [street\nname], [city]", True),  # not across lines: two
        ({"num_placeholders": 3}, "To [name], at [street\nname], [city]", False),
    ],
    "detectable_content:postscript": [
        ({"postscript_marker": "P.S."}, "Bye.\np. s. Write!", True),
        ({"postscript_marker": "P.S."}, "Bye.\nPS: Write!", False),
        ({"postscript_marker": "P.P.S"}, "P.S. one\nP. P. S two", True),
        ({"postscript_marker": "P.P.S"}, "P.S. one", False),
    ],
    "detectable_format:number_bullet_lists": [
        ({"num_bullets": 3}, "* milk\n  - bread\n- salt", True),
        ({"num_bullets": 1}, "**Bold** start\n* milk", True),
        ({"num_bullets": 2}, "* milk\n* bread\n* salt", False),  # exactly so many
    ],
    "detectable_format:constrained_response": [
        ({}, "I thought long. My answer is maybe.", True),
        ({}, "My answer is: yes.", False),
    ],
    "detectable_format:number_highlighted_sections": [
        ({"num_highlights": 2}, "*one* and **two**", True),
        ({"num_highlights": 2}, "*one* and * * and ** **", False),
        ({"num_highlights": 1}, "*over\ntwo lines*", False),
    ],
    "detectable_format:multiple_sections": [
        ({"section_spliter": "Section", "num_sections": 2}, "Section 1\nOne\nSection 2\nTwo", True),
        ({"section_spliter": "SECTION", "num_sections": 2}, "Section 1\nOne\nSection 2\nTwo", False),
        ({"section_spliter": "Day", "num_sections": 2}, "Day one, Day 2", False),
        ({"section_spliter": " Section ", "num_sections": 2}, "Section1\nSection 2", True),
    ],
    "detectable_format:json_format": [
        ({}, '```json\n{"a": [1, 2]}\n```', True),
        ({}, "```\n3\n```", True),
        ({}, 'Here: {"a": 1}', False),
    ],
    "detectable_format:title": [({}, "<<On bread>>\nIt rises.", True), ({}, "<< >>\n<On bread>", False)],
    "combination:two_responses": [
        ({}, "Yes.\n******\nNo.", True),
        ({}, "******Yes.******No.******", True),
        ({}, "Yes. ****** Yes.", False),
        ({}, "A ****** B ****** C", False),
        ({}, "A ****** ****** B", False),
    ],
    "combination:repeat_prompt": [
        ({"prompt_to_repeat": "Why does bread rise? "}, " why does bread rise? Yeast.", True),
        ({"prompt_to_repeat": "Why does bread rise?"}, "Bread rises by yeast.", False),
    ],
    "startend:end_checker": [
        ({"end_phrase": " Any questions?"}, '"It rises. ANY questions?" ', True),
        ({"end_phrase": "Any questions?"}, "Any questions? No.", False),
    ],
    "startend:quotation": [({}, ' "It rises." ', True), ({}, '"It" rises.', False), ({}, '"', False)],
    "change_case:capital_word_frequency": [
        ({"capital_frequency": 3, "capital_relation": LEAST}, "NASA and WELL-KNOWN (ESA).", True),
        ({"capital_frequency": 3, "capital_relation": LESS}, "I saw A plane", True),  # I, A
        ({"capital_frequency": 2, "capital_relation": LEAST}, "I'M late", True),  # I, 'M
        ({"capital_frequency": 1, "capital_relation": LESS}, "NASA's plan", False),
        ({"capital_frequency": 1, "capital_relation": LEAST}, "Nasa, 42, x-ray", False),
    ],
    "change_case:english_capital": [
        ({}, "BREAD RISES, AND THE YEAST IS IN IT.", True),
        ({}, "BREAD RISEs.", False),
        ({}, "DAS BROT IST NICHT AUS DEM OFEN.", False),
        ({}, "42", False),
    ],
    "change_case:english_lowercase": [
        ({}, "the bread is in the oven.", True),
        ({}, "The bread is in the oven.", False),
        ({}, "le pain est dans le four avec une pomme.", False),
    ],
    "punctuation:no_comma": [({}, "It rises; why?", True), ({}, "Yes, it does.", False)],
}


def cases(wanted=lambda _: True) -> list:
    return [
        pytest.param(name, arguments, answer, kept, id=f"{name}-{number}")
        for name, rows in CASES.items()
        for number, (arguments, answer, kept) in enumerate(rows)
        if wanted(name)
    ]


@pytest.mark.parametrize(("name", "arguments", "answer", "kept"), cases())
def test_worked_out_by_hand(name: str, arguments: dict, answer: str, kept: bool) -> None:
    """Also with whole numbers as a column with nulls has them: 2.0."""
    with_nulls = {key: float(value) if type(value) is int else value for key, value in arguments.items()}
    for given in (arguments, with_nulls):
        assert misfit({"name": name, **given}) is None
        assert check(answer, {"name": name, **given}) is kept


def test_all_25_have_cases_on_both_sides() -> None:
    assert set(CASES) == set(INSTRUCTIONS)
    assert len(INSTRUCTIONS) == 25
    assert all({kept for *_, kept in rows} == {True, False} for rows in CASES.values())


def test_loose_texts_are_the_eight_of_the_paper() -> None:
    texts = loosened("Sure:\n*yes*\nBye")
    expected = ["Sure:\n*yes*\nBye", "*yes*\nBye", "Sure:\n*yes*", "*yes*"]
    assert sorted(texts) == sorted(text for one in expected for text in (one, one.replace("*", "")))


@pytest.mark.parametrize(
    ("answer", "strict", "loose"),
    [
        ("Sure, here:\nmilk and bread", (False,), (True,)),  # the comma is in the first line
        ("milk and bread\nyes, really", (False,), (True,)),
        ("milk, bread", (False,), (False,)),
        ("milk and bread", (True,), (True,)),
        ("  \n ", (False,), (False,)),
    ],
)
def test_strict_and_loose(answer: str, strict: tuple, loose: tuple) -> None:
    verdict = judge(answer, [{"name": "punctuation:no_comma"}])
    assert (verdict.strict, verdict.loose) == (strict, loose)


def row(**more) -> dict:
    return {"prompt": "Why?", "chosen": "Because.", "rejected": "No.", **more}


@pytest.mark.parametrize("as_text", [False, True])
def test_a_row_of_ifevals_format_has_its_constraints(as_text: bool) -> None:
    """Columnar files fill every argument of every instruction with null; some sets keep the lists as JSON text."""
    ids = ["punctuation:no_comma", "length_constraints:number_words"]
    arguments = [
        {"num_words": None, "relation": None},
        {"num_words": 300.0, "relation": "at least", "letter": None},
    ]
    if as_text:
        arguments = '[{}, {"num_words": 300.0, "relation": "at least"}]'
    pair = to_pair(row(instruction_id_list=ids, kwargs=arguments, constraints=[{"name": "no_digits"}]))[1]
    assert pair.constraints == (
        {"name": "no_digits"},
        {"name": "punctuation:no_comma"},
        {"name": "length_constraints:number_words", "num_words": 300.0, "relation": "at least"},
    )


def test_columns_of_these_names_of_another_program_are_none() -> None:
    assert to_pair(row(instruction_id_list=["haiku:lines"], kwargs=[{"n": 3}]))[1].constraints == ()
    assert to_pair(row(kwargs={"a": 1}))[1].constraints == ()


@pytest.mark.parametrize(
    ("ids", "arguments", "what"),
    [
        (["punctuation:no_comma", "haiku:lines"], [{}, {}], "no known instruction"),
        (["punctuation:no_comma"], [], "kwargs has not an object for each"),
        (
            ["length_constraints:number_words"],
            [{"num_words": 3, "relation": "more than"}],
            "one of less than, at least",
        ),
        (["keywords:existence"], [{"keywords": "sea"}], "a list of texts"),
        (["language:response_language"], [{"language": "tlh"}], "expected one of ar"),
    ],
)
def test_what_no_answer_could_be_held_to_drops_the_row(ids: list, arguments: list, what: str) -> None:
    with pytest.raises(RowDropped) as caught:
        to_pair(row(instruction_id_list=ids, kwargs=arguments))
    assert caught.value.reason == "bad_constraints"
    assert what in caught.value.detail


@pytest.mark.parametrize("name", ["keywords:existence", "keywords:forbidden_words"])
def test_a_word_of_megabytes_takes_no_time(name: str) -> None:
    started = time.process_time()
    arguments = {name.partition(":")[2].replace("existence", "keywords"): ["a" * 5_000_000]}
    assert check("a" * 1000, {"name": name, **arguments}) is (name == "keywords:forbidden_words")
    assert time.process_time() - started < 1
