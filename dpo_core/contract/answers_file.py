"""``answers.jsonl``: what a policy said to a few held-out prompts while it trained, one JSON object an evaluation.

Training writes it and pages read it. It is bounded: the answers before the first step and those of the newest evaluations,
of a few prompts, long texts cut.
"""

from collections.abc import Sequence
from pathlib import Path

from dpo_core.contract.errors import StoreError
from dpo_core.contract.jobs import AnswerPair
from dpo_core.contract.regular_file import read_regular
from dpo_core.contract.section import Section
from dpo_core.contract.store import write_bytes

ANSWERS_FILE = "answers.jsonl"
MOST_ANSWERS, MOST_CHARACTERS, MOST_EVALUATIONS = 8, 2000, 20
LARGEST_BYTES = 8 << 20  # each character written as six at the most


class ToldAnswer(Section):
    """A prompt and an answer to it. ``passes`` is None where the row has no constraints."""

    prompt: str
    answer: str
    passes: bool | None = None

    @classmethod
    def cut(cls, prompt: str, answer: str, passes: bool | None) -> "ToldAnswer":
        """Return one whose texts are no longer than the file holds."""
        return cls(prompt=_cut(prompt), answer=_cut(answer), passes=passes)


class AnswersOfStep(Section):
    """What the policy said after so many steps."""

    step: int
    answers: tuple[ToldAnswer, ...]


def read_answers(path: Path) -> tuple[AnswersOfStep, ...]:
    """Return what is kept, oldest first; none if the file is not there. From the first line on that is not one, nothing is
    read."""
    kept = []
    try:
        for line in read_regular(path, LARGEST_BYTES).splitlines():
            kept.append(AnswersOfStep.model_validate_json(line))
    except (OSError, StoreError, ValueError):
        pass
    return tuple(kept)


def keep_answers(path: Path, newest: AnswersOfStep) -> None:
    """Add the newest answers; those of its step and, beyond what the file holds, the oldest but the first ones go."""
    others = [one for one in read_answers(path) if one.step != newest.step]
    start, later = ([one for one in others if one.step == 0], [one for one in others if one.step > 0])
    kept = sorted([*start, *later[-(MOST_EVALUATIONS - 2) :], newest], key=lambda one: one.step)
    write_bytes(path, "".join(f"{one.model_dump_json()}\n" for one in kept).encode())


def side_by_side(kept: Sequence[AnswersOfStep]) -> tuple[int, tuple[AnswerPair, ...]] | None:
    """Return the newest step with what was said before the first step and after it; None without either."""
    if len(kept) < 2 or kept[0].step != 0:
        return None
    start, newest = kept[0], kept[-1]
    pairs = (  # always the same prompts in one order; of long ones the shown texts may be alike
        AnswerPair(
            prompt=one.prompt,
            before=old.answer,
            after=one.answer,
            before_passes=old.passes,
            after_passes=one.passes,
        )
        for old, one in zip(start.answers, newest.answers, strict=False)
        if old.prompt == one.prompt
    )
    return newest.step, tuple(pairs)


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 4] + " ..."
