"""Opinions prompt by prompt -> the figures of a judgement."""

from collections.abc import Sequence

import numpy as np

from dpo_core.contract.errors import DataError
from dpo_core.contract.jobs import AnswerPair
from dpo_core.contract.judge_job import EndpointJudge, RewardModelJudge
from dpo_core.contract.judgement import JudgeFigures
from dpo_core.judging.judge import Session
from dpo_core.judging.length_control import length_controlled


def judgement_of(
    judge: RewardModelJudge | EndpointJudge, answers: Sequence[AnswerPair], session: Session
) -> JudgeFigures:
    """Return the figures over what could be read. Raises ``DataError`` if nothing could."""
    read = [
        (pair, opinion, opinion.preference)
        for pair, opinion in zip(answers, session.opinions, strict=True)
        if opinion.preference is not None
    ]
    if not read:
        said = next((words[-1] for words in session.said if words), "nothing")
        raise DataError(
            f"None of the judge's {len(answers)} opinions could be read. It said: {said[:300]!r}",
            'Its reply has to end with "Verdict: A", "Verdict: B" or "Verdict: tie": look at judge.question, and at '
            "judge.max_new_tokens.",
        )
    preferences = np.array([chance for _, _, chance in read])
    before, after = (
        np.array([len(getattr(pair, side)) for pair, _, _ in read], float) for side in ("before", "after")
    )
    controlled = length_controlled(preferences, after - before)
    size = len(preferences)
    asked = isinstance(judge, EndpointJudge)
    return JudgeFigures(
        kind=judge.kind,
        model=judge.name,
        num_prompts=size,
        unreadable=len(answers) - size,
        wins=int(np.sum(preferences > 0.5)),
        ties=int(np.sum(preferences == 0.5)),
        losses=int(np.sum(preferences < 0.5)),
        same=sum(pair.before == pair.after for pair, _, _ in read),
        win_rate=float(np.mean(preferences)),
        win_rate_stderr=float(np.std(preferences, ddof=1) / np.sqrt(size)) if size > 1 else None,
        length_controlled=controlled.rate if controlled else None,
        length_controlled_stderr=controlled.stderr if controlled else None,
        characters_before=float(np.mean(before)),
        characters_after=float(np.mean(after)),
        cut=session.cut,
        agreement=_agreement(answers, session) if asked else None,
        first_chosen=_first_chosen(session) if asked else None,
        prompt_tokens=session.prompt_tokens,
        completion_tokens=session.completion_tokens,
    )


def _agreement(answers: Sequence[AnswerPair], session: Session) -> float | None:
    """Over the pairs that the judge was asked about: of answers that are the same it said nothing. None where it was asked
    about none."""
    orders = [
        opinion.orders
        for pair, opinion in zip(answers, session.opinions, strict=True)
        if opinion.preference is not None and pair.before != pair.after
    ]
    return sum(first == second for first, second in orders) / len(orders) if orders else None


def _first_chosen(session: Session) -> float | None:
    """None where every verdict is a tie."""
    chosen = [
        said == first
        for opinion in session.opinions
        for said, first in zip(opinion.orders, ("before", "after"), strict=False)
        if said in ("before", "after")
    ]
    return sum(chosen) / len(chosen) if chosen else None
