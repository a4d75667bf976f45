"""Which answers are shown of the many that were given: those that tell most first, then some that nobody chose."""

from collections.abc import Sequence

from dpo_core.contract.jobs import AnswerPair
from tasks.report.blocks import Sample

MOST_ON_A_PAGE, MOST_CHARACTERS = 200, 400_000  # of answers to choose from, whatever their number and length


def informative(
    answers: Sequence[AnswerPair], count: int, preferences: Sequence[float | None] = ()
) -> tuple[AnswerPair, ...]:
    """Return at most ``count`` of the answers: up to a third that no longer keep their instruction, up to a third that keep
    it only now, and of all others such as lie evenly in the order of the prompts, so that neither side is shown alone.

    ``preferences``: a judge's, one an answer, 1 for the later one, or none at all. Among answers that no checker speaks of
    those are lost or gained that the judge likes less or better than the earlier ones, the clearest first.
    """
    places = range(len(answers))
    lost = [
        place for place in places if answers[place].before_passes and answers[place].after_passes is False
    ]
    gained = [
        place for place in places if answers[place].before_passes is False and answers[place].after_passes
    ]
    judged = {
        place: preference
        for place, preference in enumerate(preferences)
        if preference is not None and None in (answers[place].before_passes, answers[place].after_passes)
    }
    by_judge = sorted(judged, key=lambda place: judged[place])
    lost += [place for place in by_judge if judged[place] < 0.5]
    gained += [place for place in reversed(by_judge) if judged[place] > 0.5]
    a_third = -(-count // 3)
    chosen = [*lost[:a_third], *gained[:a_third]][:count]
    others = [place for place in places if place not in set(chosen)]
    free = min(count - len(chosen), len(others))
    chosen += [others[number * len(others) // free] for number in range(free)]
    return tuple(answers[place] for place in chosen)


def as_samples(
    answers: Sequence[AnswerPair], count: int, preferences: Sequence[float | None] = ()
) -> tuple[Sample, ...]:
    """Return the informative ones as a page shows them, and behind them, in their order, as many others as a page holds, for
    a reader who chooses; none at all for a count of 0."""
    if not count:
        return ()
    telling = informative(answers, count, preferences)
    first = {id(answer) for answer in telling}
    more, room = list[AnswerPair](), MOST_CHARACTERS
    for answer in answers:
        room -= len(answer.prompt) + len(answer.before) + len(answer.after)
        if room < 0 or len(telling) + len(more) >= MOST_ON_A_PAGE:
            break
        if id(answer) not in first:
            more.append(answer)
    return tuple(
        Sample(one.prompt, one.before, one.after, one.before_passes, one.after_passes, is_telling)
        for chosen, is_telling in ((telling, True), (more, False))
        for one in chosen
    )
