"""Which answers are shown of the many that were given: those that tell most first, then some that nobody chose."""

from collections.abc import Sequence

from dpo_core.contract.jobs import AnswerPair
from tasks.report.blocks import Sample


def informative(answers: Sequence[AnswerPair], count: int) -> tuple[AnswerPair, ...]:
    """Return at most ``count`` of the answers: up to a third that no longer keep their instruction, up to a third that keep
    it only now, and of all others such as lie evenly in the order of the prompts, so that neither side is shown alone."""
    places = range(len(answers))
    lost = [
        place for place in places if answers[place].before_passes and answers[place].after_passes is False
    ]
    gained = [
        place for place in places if answers[place].before_passes is False and answers[place].after_passes
    ]
    a_third = -(-count // 3)
    chosen = [*lost[:a_third], *gained[:a_third]][:count]
    others = [place for place in places if place not in set(chosen)]
    free = min(count - len(chosen), len(others))
    chosen += [others[number * len(others) // free] for number in range(free)]
    return tuple(answers[place] for place in chosen)


def as_samples(answers: Sequence[AnswerPair], count: int) -> tuple[Sample, ...]:
    """Return the informative ones as a page shows them."""
    return tuple(
        Sample(answer.prompt, answer.before, answer.after, answer.before_passes, answer.after_passes)
        for answer in informative(answers, count)
    )
