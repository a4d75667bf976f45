"""Samples that inform: losses, gains, and what nobody chose."""

from hypothesis import given
from hypothesis import strategies as st

from dpo_core.contract.jobs import AnswerPair
from tasks.report.samples import informative

VERDICTS = st.sampled_from([None, True, False])


def answers(*judged: tuple[bool | None, bool | None]) -> list[AnswerPair]:
    return [
        AnswerPair(prompt=str(number), before="b", after="a", before_passes=old, after_passes=new)
        for number, (old, new) in enumerate(judged)
    ]


def prompts(*judged, count: int) -> list[str]:
    return [answer.prompt for answer in informative(answers(*judged), count)]


def test_a_third_lost_a_third_gained_and_the_others_from_everywhere():
    same, lost, gained = (True, True), (True, False), (False, True)
    judged = [*[same] * 10, *[gained] * 5, *[lost] * 5]
    assert prompts(*judged, count=6) == ["15", "16", "10", "11", "0", "8"]


def test_where_nothing_is_judged_they_lie_evenly_in_their_order():
    assert prompts(*[(None, None)] * 12, count=4) == ["0", "3", "6", "9"]


@given(st.lists(st.tuples(VERDICTS, VERDICTS), max_size=40), st.integers(0, 50))
def test_as_many_as_asked_for_none_twice_and_a_loss_is_never_left_out_for_nothing(judged, count):
    shown = informative(answers(*judged), count)
    assert len(shown) == min(count, len(judged))
    assert len({answer.prompt for answer in shown}) == len(shown)
    if count and any(old and new is False for old, new in judged):
        assert shown[0].before_passes
        assert shown[0].after_passes is False
