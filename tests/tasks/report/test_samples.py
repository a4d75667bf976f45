"""Samples that inform: losses, gains, and what nobody chose."""

from hypothesis import given
from hypothesis import strategies as st

from dpo_core.contract.jobs import AnswerPair
from tasks.report.samples import MOST_CHARACTERS, MOST_ON_A_PAGE, as_samples, informative

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


def test_where_no_checker_speaks_the_judge_says_which_are_lost_and_gained():
    silent, kept, lost = (None, None), (True, True), (True, False)
    preferences = [0.5, 0.9, None, 0.2, 0.5, 1.0, 0.1, 0.5, 0.5, 0.4]
    chosen = informative(answers(*[silent] * 10), 6, preferences)
    assert [one.prompt for one in chosen] == ["6", "3", "5", "1", "0", "7"]
    spoken = informative(answers(kept, silent, lost, silent), 3, [0.0, 0.3, 0.9, 0.8])
    assert [one.prompt for one in spoken] == [
        "2",
        "3",
        "0",
    ]  # by the checker, whatever the judge says of these
    found = as_samples(answers(*[silent] * 3), 1, [0.9, 0.6, 0.2])
    assert [(one.prompt, one.is_telling) for one in found] == [("2", True), ("0", False), ("1", False)]


@given(st.lists(st.tuples(VERDICTS, VERDICTS), max_size=40), st.integers(0, 50))
def test_as_many_as_asked_for_none_twice_and_a_loss_is_never_left_out_for_nothing(judged, count):
    shown = informative(answers(*judged), count)
    assert len(shown) == min(count, len(judged))
    assert len({answer.prompt for answer in shown}) == len(shown)
    if count and any(old and new is False for old, new in judged):
        assert shown[0].before_passes
        assert shown[0].after_passes is False


def test_behind_those_that_tell_most_stand_the_others_to_choose_from():
    found = as_samples(answers((True, True), (True, True), (True, False), (True, True)), 2)
    assert [(one.prompt, one.is_telling) for one in found] == [
        ("2", True),
        ("0", True),
        ("1", False),
        ("3", False),
    ]


def test_a_count_of_none_is_none():
    assert as_samples(answers((True, False)), 0) == ()


def test_a_page_holds_only_so_many_and_so_much():
    assert len(as_samples(answers(*[(None, None)] * 500), 8)) == MOST_ON_A_PAGE
    assert len(as_samples(answers(*[(None, None)] * 500), 300)) == 300
    long = [
        answer.model_copy(update={"after": "x" * (MOST_CHARACTERS // 4)})
        for answer in answers(*[(None, None)] * 9)
    ]
    assert sum(not one.is_telling for one in as_samples(long, 1)) == 2
