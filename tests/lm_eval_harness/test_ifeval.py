"""IFEval's instructions beside the program that was published with them, as lm-evaluation-harness holds it: the same
verdict for every case, and for every answer of any case under every case's arguments."""

import itertools

import nltk
import pytest

from dpo_core.data.checkers import check
from dpo_core.data.ifeval import loosened
from tests.dpo_core.data.test_ifeval import CASES

# Decided otherwise on purpose (docs/data.md): sentences and capitals without a trained model, languages without langdetect.
OTHERWISE = {
    "length_constraints:number_sentences",
    "language:response_language",
    "change_case:english_capital",
    "change_case:english_lowercase",
    "change_case:capital_word_frequency",
}
ALIKE = sorted(set(CASES) - OTHERWISE)
ANSWERS = sorted({answer for rows in CASES.values() for _, answer, _ in rows})


@pytest.fixture(scope="module")
def published():
    """Its functions by name. It asks for a model of sentences when it is imported, which the twenty do not use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.data, "find", lambda resource: resource)
        from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    def keeps(name: str, arguments: dict, answer: str) -> bool:
        instruction = INSTRUCTION_DICT[name](name)
        instruction.build_description(**arguments)
        return bool(answer.strip()) and bool(instruction.check_following(answer))

    assert set(INSTRUCTION_DICT) == set(CASES)
    return keeps


@pytest.mark.parametrize("name", ALIKE)
def test_the_verdict_is_that_of_the_published_program(published, name):
    arguments_of_cases = [arguments for arguments, _, _ in CASES[name]]
    disagreed = [
        (arguments, text)
        for arguments, answer in itertools.product(arguments_of_cases, ANSWERS)
        for text in dict.fromkeys(loosened(answer))
        if check(text, {"name": name, **arguments}) is not published(name, dict(arguments), text)
    ]
    assert not disagreed
