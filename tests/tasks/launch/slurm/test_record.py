"""What starts leave behind, the log, and the one question for all jobs: files and values, no cluster."""

import json
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.launch.context import Context
from tasks.launch.slurm.client import QueuedJob, SlurmAway
from tasks.launch.slurm.followed import Followed
from tasks.launch.slurm.history import HISTORY_FILE, remember, starts_so_far
from tasks.launch.slurm.job_log import JobLog, split_label
from tasks.launch.slurm.poll import Poll
from tasks.launch.slurm.record import (
    RankEnd,
    Start,
    StartsSeen,
    fence,
    forget_earlier,
    running_seconds,
    starts_of,
    wait_for_ranks,
)
from tasks.launch.slurm.watch import SECONDS_BETWEEN_YOUNG, SECONDS_YOUNG, WAITING_TURN_SECONDS, JobWatch
from tests.slurm_cluster.small_step import SmallStep


def make_start(record: Path, name: str, **files: str) -> None:
    (record / name / "ranks").mkdir(parents=True)
    for file, text in files.items():
        place = record / name / ("ranks" if file.startswith("rank") else "")
        (place / file.replace("_json", ".json").replace("_", "-")).write_text(text)


def test_starts_are_read_in_their_order_with_how_they_ended(tmp_path):
    end = json.dumps({"rank": 1, "host": "n2", "code": -9, "time": 5.5, "world": 2})
    make_start(tmp_path, "key.10", started="1000 7 n[1-2]\n")
    make_start(
        tmp_path,
        "key.2",
        started="100 7 n1 step-00000040\n",
        exit="137 160\n",
        rank_1_json=end,
        rank_0_json="{half",
    )
    make_start(tmp_path, "other.0", started="1 1 n1\n")
    first, second = starts_of(tmp_path, "key")
    assert first.ranks == (RankEnd(1, "n2", -9, 5.5, 2),)
    assert (first.number, first.exit_code, first.seconds(now=1e9)) == (2, 137, 60.0)
    assert (second.number, second.nodes, second.exit_code) == (10, "n[1-2]", None)
    assert (first.from_step, second.from_step) == (40, None)


@pytest.mark.parametrize("text", ["", "x y z", "\x00", "1" * 100_000, "1" * 5000, "²", "1 2 3 step-²"])
def test_a_record_that_is_no_record_fails_nothing(tmp_path, text: str):
    make_start(tmp_path, "key.0", started=text, exit=text, rank_0_json=text)
    (start,) = starts_of(tmp_path, "key")
    assert start.exit_code in (None, 1)
    assert start.from_step is None


def test_starts_are_read_again_once_the_newest_has_ended(tmp_path):
    make_start(tmp_path, "key.0", started="100 7 n1\n")
    seen = StartsSeen(tmp_path, "key")
    assert [start.exit_code for start in seen.look()] == [None]
    make_start(tmp_path, "key.1", started="200 7 n2\n")
    assert len(seen.look()) == 1
    assert len(seen.look(anew=True)) == 2
    (tmp_path / "key.1/exit").write_text("0 300\n")
    assert [start.exit_code for start in seen.look()] == [None, 0]


def test_time_runs_while_a_start_runs_and_not_in_the_queue():
    now = time.time()
    ended = Start(0, began=now - 5000, ended=now - 4000, exit_code=20)
    lost = Start(1, began=now - 3000, last_sign=now - 2900)
    running = Start(2, began=now - 50, last_sign=now - 1)
    assert running_seconds([ended, lost, running]) == pytest.approx(1000 + 100 + 50, abs=2)


def test_what_may_still_be_at_work_stays_when_earlier_ones_are_forgotten(tmp_path):
    make_start(tmp_path, "old.0")
    make_start(tmp_path, "new.0")
    (tmp_path / "old.log").write_text("x")
    (tmp_path / "attempt").write_text("new.0\n")
    forget_earlier(tmp_path)
    assert {place.name for place in tmp_path.iterdir()} == {"attempt", "new.0"}


def test_the_starts_of_earlier_jobs_are_told_once_their_records_are_gone(tmp_path):
    make_start(tmp_path, "old.0", started="100 7 n1\n", rank_0_json='{"rank": 0, "host": "n1"}')
    make_start(tmp_path, "old.1", started="300 7 n2 step-00000020\n", exit="20 360\n")
    (tmp_path / "attempt").write_text("old.1\n")
    for _ in range(2):  # the newest record stays, and is told once all the same
        remember(tmp_path, 1000.0)
        forget_earlier(tmp_path, HISTORY_FILE)
    make_start(tmp_path, "new.0", started="500 8 n2 step-00000030\n")
    first, second, third = starts_so_far(tmp_path, ["new"], now=560.0)
    assert (first.job_id, first.end) == ("7", "lost: nothing more was heard of n1")
    assert (second.from_step, second.seconds) == (20, 60.0)
    assert second.end == "stopped after SIGTERM: time limit, or asked to stop"
    assert (third.job_id, third.from_step, third.end) == ("8", 30, "")
    assert [start.job_id for start in starts_so_far(tmp_path, ["old"], now=560.0)] == ["7"]


def test_ranks_that_may_still_be_at_work_are_told_that_it_is_over(tmp_path):
    rank = '{"rank": 0, "host": "n1"}'
    make_start(tmp_path, "key.0", exit="0 5", rank_0_json=rank)  # srun had lost sight of it
    make_start(tmp_path, "key.1", exit="0 5", rank_0_json=rank.replace("}", ', "code": 0}'))
    make_start(tmp_path, "key.2", rank_0_json=rank)
    make_start(tmp_path, "other.0", rank_0_json=rank)
    fence(tmp_path, "key")
    assert sorted(file.parent.name for file in tmp_path.glob("*/over")) == ["key.0", "key.2"]
    wait_for_ranks(tmp_path, "nobody", seconds=60)


@pytest.mark.parametrize("text", ["", "{", "[1]", "[[1, 2]]", '[["a", {"job_id": 1}]]', "null"])
def test_a_history_that_is_none_is_no_history(tmp_path, text: str):
    (tmp_path / HISTORY_FILE).write_text(text)
    assert starts_so_far(tmp_path, ["new"], now=1.0) == ()


@settings(max_examples=25)
@given(
    text=st.text(alphabet="ab é\n{", max_size=60),
    cuts=st.lists(st.integers(0, 80), max_size=4),
    split=st.integers(0, 80),
)
def test_a_log_in_pieces_by_two_readers_is_every_line_once(
    tmp_path_factory, text: str, cuts: list[int], split: int
):
    content, lines = text.encode(), []
    file = Path(tempfile.mkdtemp()) / "log"
    log = JobLog(file, 0, has_labels=False)
    for cut in sorted(cut for cut in cuts if cut <= split):
        file.write_bytes(content[:cut])
        log.pass_on(lines.append)
    file.write_bytes(content)
    JobLog(file, log.offset, has_labels=False).pass_on(lines.append, to_the_end=True)
    expected = content.decode().split("\n")
    assert lines == (expected[:-1] if expected[-1] == "" else expected)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0: a", (0, "a")),
        ("12: ", (12, "")),
        (" 3: b: c", (3, "b: c")),
        ("srun: error: x", (0, "srun: error: x")),
        ("", (0, "")),
    ],
)
def test_the_rank_before_a_line(line: str, expected: tuple[int, str]):
    assert split_label(line) == expected


def test_one_question_serves_all_who_wait(monkeypatch):
    asked = []

    def ask(names):
        asked.append(set(names))
        return [QueuedJob("1", "PENDING", "Priority", "", "p", "N/A", name, {}) for name in names]

    poll = Poll(ask)
    for number in range(200):
        poll.watch(f"job-{number}")
    waiting = [threading.Thread(target=poll.look, args=(f"job-{number}", 30)) for number in range(200)]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join()
    assert len(asked) == 1
    assert len(asked[0]) == 200
    assert poll.look("job-7", 30)[0].name == "job-7"
    assert len(asked) == 1


def test_hours_in_a_queue_cost_one_question_every_30_seconds_for_all_jobs(tmp_path, monkeypatch):
    """A clock of the test's own. For its first seconds a job is asked about more often: what can never start says so."""
    clock = SimpleNamespace(now=1000.0, time=time.time)
    clock.monotonic = lambda: clock.now
    for module in ("watch", "poll"):
        monkeypatch.setattr(f"tasks.launch.slurm.{module}.time", clock)
    steps = [SmallStep(tmp_path / str(number), "", 1, {"poll_seconds": 30}) for number in range(3)]
    commands = [step.command(job_fingerprint=f"{number}" * 64) for number, step in enumerate(steps)]
    keys = {command.name: f"key-{number}" for number, command in enumerate(commands)}
    poll = Poll(
        lambda names: [
            QueuedJob("1", "PENDING", "Priority", "", "p", "N/A", name, {"key": keys[name]}) for name in names
        ]
    )
    watches = []
    for step, command in zip(steps, commands, strict=True):
        job = Followed(
            keys[command.name], "1", step.record, JobLog(step.record / "x.log", 0, has_labels=False)
        )
        limits = step.launcher.limits(command, 0.0)
        watches.append(JobWatch(command, job, limits, poll, Context(), print))
        poll.watch(command.name)
    asked = {}
    for end in (SECONDS_YOUNG, 300.0, 600.0):
        while clock.now < 1000 + end:
            assert [watch.turn() for watch in watches] == [None] * 3
            clock.now += WAITING_TURN_SECONDS
        asked[end] = poll.num_asked
    assert 1 < asked[SECONDS_YOUNG] <= SECONDS_YOUNG / SECONDS_BETWEEN_YOUNG + 1
    assert 9 <= asked[600.0] - asked[300.0] <= 10


def test_a_name_that_was_not_asked_about_is_asked_at_once():
    poll = Poll(lambda names: [])
    poll.watch("a")
    poll.look("a", 30)
    assert (poll.look("b", 30), poll.num_asked) == ([], 2)


def test_no_answer_is_one_answer_for_all():
    def ask(names):
        raise SlurmAway("away")

    poll = Poll(ask)
    poll.watch("a")
    for _ in range(5):
        with pytest.raises(SlurmAway):
            poll.look("a", 30)
    assert poll.num_asked == 1
