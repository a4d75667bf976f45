"""A second of a step's log costs Prefect one line, and its end is never lost."""

from dpo_core.contract.progress import ProgressEvent
from tasks.show.run_log import NUM_LAST_LINES, ThinnedLines


class Listener(ThinnedLines):
    """With a clock that the test sets."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.now = 100.0
        super().__init__(self.heard.append, lambda: self.now)


def test_a_line_a_second_and_the_last_ones():
    listener = Listener()
    for number in range(100):
        listener.line(f"{number}")
        listener.now += 0.1
    before_end = list(listener.heard)
    assert before_end[0] == "0"
    assert 9 <= len(before_end) <= 11
    listener.end()
    assert [line for line in listener.heard if line.isdigit()][-1] == "99"
    assert len(listener.heard) <= len(before_end) + NUM_LAST_LINES + 1


def test_every_line_is_heard_or_counted():
    listener = Listener()
    for number in range(1000):
        listener.line(f"{number}")
        listener.now += 0.01
    listener.end()
    *shown, rest = listener.heard
    assert rest == f"({1000 - len(shown)} lines more in the step's log.txt)"


def test_a_slow_log_is_heard_whole_and_at_once():
    listener = Listener()
    for number in range(5):
        listener.line(f"{number}")
        assert listener.heard[-1] == f"{number}"
        listener.now += 2
    listener.end()
    assert listener.heard == ["0", "1", "2", "3", "4"]


def test_the_next_step_begins_anew():
    listener = Listener()
    for number in range(3):
        listener.line(f"a{number}")
    listener.end()
    listener.line("b0")
    assert listener.heard == ["a0", "a1", "a2", "b0"]


def test_empty_lines_cost_nothing():
    listener = Listener()
    listener.line("")
    listener.end()
    assert listener.heard == []


def test_progress_is_told_every_ten_seconds():
    listener = Listener()
    for done in range(30):
        listener.progress(
            ProgressEvent(step="train", done=done, total=1200, unit="steps", rate=1.0, phase="probe")
        )
        listener.now += 1
    assert listener.heard == [f"train (probe): {done}/1,200 steps, 1 steps/s" for done in (0, 10, 20)]
