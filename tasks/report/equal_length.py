"""What is counted in answers, with their length taken out: what is won by that is nothing better. Pure."""

import math
from collections.abc import Sequence
from dataclasses import replace

from dpo_core.contract.jobs import AnswerPair, EvaluateResult
from dpo_core.contract.judgement import PREFERRED, JudgeFigures
from dpo_core.contract.metric_names import KEPT, label_of, of_set
from dpo_core.contract.outcome import Outcome, chance_of
from dpo_core.contract.warning_signs import LEVEL, Sign, SignName
from dpo_core.contract.word_count import words_of
from tasks.gate.signs import kept_outcome
from tasks.text.scores import with_error

OF_LENGTH: tuple[SignName, ...] = ("length", "shortening")


def kept_at_like_length(
    outcome: Outcome, result: EvaluateResult, signs: Sequence[Sign], looks: int
) -> Outcome:
    """Return instructions kept; where answers as a whole grew or shrank as far as a sign says, by those alone that did not:
    one word is at most 15 words, and without commas. ``looks``: among so many the checkpoint was chosen by it."""
    bounds = {sign.name: sign.bound for sign in signs if sign.name in OF_LENGTH}
    answers = next(
        (
            pairs
            for name, pairs in {"": result.answers, **result.set_answers}.items()
            if outcome.label.startswith(label_of(of_set(name, KEPT)))
        ),
        None,
    )
    if answers is None or not bounds or outcome.change <= 0:
        return outcome
    alike = [pair for pair in answers if _is_alike(pair, bounds)]
    limits = " and ".join(
        f"{'under' if name == 'length' else 'over'} {bound:g} times as long" for name, bound in bounds.items()
    )
    label = f"{outcome.label.removesuffix(',')}, of the {len(alike)} answers {limits},"
    found = kept_outcome(label, alike)
    if found is None:
        return replace(outcome, label=f"{outcome.label.removesuffix(',')}, no answer {limits},", chance=1.0)
    chance = min(1.0, looks * found.chance) if found.change > 0 else 1.0
    return replace(found, chance=max(outcome.chance, chance))


def preferred_at_equal_length(outcome: Outcome, judgement: JudgeFigures | None, looks: int) -> Outcome:
    """Return what a judge prefers, unless answers of equal length would not win by more than chance: then they won by their
    length (Dubois et al., arXiv 2404.04475). ``looks``: among so many the checkpoint was chosen by it."""
    if judgement is None or outcome.change <= 0 or not outcome.label.startswith(PREFERRED):
        return outcome
    controlled, stderr = judgement.length_controlled, judgement.length_controlled_stderr
    if controlled is None:
        return outcome
    chance = 1.0
    if controlled > 0.5:
        chance = min(1.0, looks * chance_of(controlled - 0.5, stderr or 0.0, judgement.num_prompts))
    if chance <= outcome.chance:
        return outcome
    but = "" if chance < LEVEL else "but "
    label = (
        f"{outcome.label.removesuffix(',')}, {but}{with_error(controlled, stderr, digits=2)} of equal length,"
    )
    return replace(outcome, label=label, chance=chance)


def _is_alike(pair: AnswerPair, bounds: dict[SignName, float]) -> bool:
    before, after = len(words_of(pair.before)), len(words_of(pair.after))
    return bounds.get("shortening", 0.0) * before < after < bounds.get("length", math.inf) * max(1, before)
