"""`pairline watch`: what it draws of runs in every state, on any width; and on a real terminal, of a run that goes on."""

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest
from rich.cells import cell_len
from rich.console import Console

from dpo_core.contract.answers_file import ANSWERS_FILE, AnswersOfStep, ToldAnswer, keep_answers
from dpo_core.contract.errors import StepCrashed
from dpo_core.contract.jobs import AnswerPair
from flows.terminal.watch import follow_report, watch_run
from flows.terminal.watch_view import run_view
from tasks.report.page import REPORT_FILE
from tasks.report.verdict import verdict_of_run
from tasks.run.files import read_run_files
from tasks.run.folder import read_run
from tasks.run.live import RunLook
from tests.flows.conftest import pairline
from tests.hostile_text import EVERYTHING, calm
from tests.tasks.report.made_run import AFTER, make_run
from tests.tasks.run.growing_run import GrowingRun
from tests.waiting import PATIENCE_SECONDS, wait_until
from tests.warm.started import python_path

ALL = re.sub("[\ud800-\udfff\x00]", "", EVERYTHING)  # what a file can hold
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def drawn(folder, width=100, height=None) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(run_view(RunLook(folder).look(), width, height))
    return console.file.getvalue()


@pytest.fixture
def training(tmp_path) -> GrowingRun:
    growing = GrowingRun(tmp_path)
    growing.train_to(100)
    growing.evaluate(loss=0.61, **{"rewards/accuracies": 0.75, "rewards/margins": 0.2})
    return growing


@pytest.mark.parametrize("width", [60, 100, 160])
def test_a_run_that_trains_fits_any_width(training, width):
    training.say("step 100: held-out chosen answers fall")
    seen = drawn(training.folder, width)
    assert max(map(cell_len, seen.splitlines())) <= width
    for fact in ("running", "✓ mix data", "▶ train", "· hand off", "100/400 steps", "25%", "2/s", "left"):
        assert fact in seen, fact
    assert "o 0.61" in seen
    assert "o 0.75" in seen
    assert "! step 100: held-out chosen answers fall" in seen
    assert any("⠁" <= letter <= "⣿" for letter in seen)


def test_a_low_terminal_has_low_curves(training):
    assert len(drawn(training.folder, 100, 24).splitlines()) <= 24
    assert len(drawn(training.folder, 100, 60).splitlines()) > len(
        drawn(training.folder, 100, 24).splitlines()
    )


def test_before_the_first_word_the_log_is_shown_and_after_the_last_its_age(training):
    training.say("\n# 2026-01-01 00:00:00 accelerate launch ...")
    training.say("waits for another run to end")
    assert "log: waits for another run to end" in drawn(training.folder)
    training.train_to(101)
    os.utime(training.log, (time.time() - 300, time.time() - 300))
    assert "no word for 5 min" in drawn(training.folder)


def test_a_run_that_waits_for_a_person_says_how_to_answer(training):
    command = f"pairline approve --run {training.folder.name}"
    assert command not in drawn(training.folder)
    training.change(state="suspended")
    assert command in drawn(training.folder, 160)
    last = read_run(training.folder).tasks[-1].model_copy(update={"name": "approve"})
    training.change(state="running", tasks=[last])
    assert command in drawn(training.folder, 160)


def test_a_finished_run_says_what_came_of_it_with_samples(tmp_path):
    seen = drawn(make_run(tmp_path), 120)
    for fact in ("completed", "✓ hand off", "Cannot tell", "handoff: ", "Name a sea", "after ✓  The Baltic"):
        assert fact in seen, fact


def test_what_warns_of_a_finished_run_stands_there_once_though_its_log_has_it_too(tmp_path):
    folder = make_run(tmp_path, after=AFTER | {"rewards/length_correlation": 0.8})
    (sign,) = verdict_of_run(read_run_files(folder)).signs
    with (folder / "run.log").open("a") as log:
        log.write(
            f"2026-01-01 00:00:00,000 WARNING {sign.words}\n2026-01-01 00:00:00,000 WARNING few pairs\n"
        )
    seen = " ".join(drawn(folder, 120).split())
    assert seen.count("Reward margins of the held-out pairs follow length") == 1
    assert "! few pairs" in seen


def test_a_run_that_trains_shows_what_its_policy_said_last_beside_its_start(training):
    for step, answer in ((0, "The Baltic, I think."), (50, "The North Sea."), (100, ALL)):
        told = ToldAnswer.cut("Name a sea", answer, step > 0)
        keep_answers(training.train / ANSWERS_FILE, AnswersOfStep(step=step, answers=(told,)))
    seen = drawn(training.folder, 120)
    for fact in ("Name a sea", "before ✗  The Baltic, I think.", "step 100 ✓"):
        assert fact in seen, fact
    assert "North Sea" not in seen
    assert calm(seen)


def test_a_failed_run_says_where_why_and_how_to_go_on(tmp_path):
    seen = drawn(make_run(tmp_path, fails=StepCrashed("out of cheese")), 200)
    for fact in (
        "failed",
        "✗ train",
        "out of cheese",
        "Traceback",
        "pairline run ",
        "goes on from its newest checkpoint",
    ):
        assert fact in seen, fact


def test_hostile_text_steers_nothing(tmp_path):
    answer = AnswerPair(prompt=ALL, before=ALL, after=ALL)
    ended = make_run(tmp_path / "a", answer=answer, label=ALL, checkpoint={"source": ALL})
    failed = make_run(tmp_path / "b", fails=RuntimeError(ALL))
    growing = GrowingRun(tmp_path / "c")
    growing.say(f"step 3: {ALL}".replace("\n", " "))
    for folder in (ended, failed, growing.folder):
        assert "evil" in calm(drawn(folder, 60))
    with_brackets = GrowingRun(tmp_path / "d")
    with_brackets.say("step 3: [bold]x[/bold] :boom:")
    assert "[bold]x[/bold] :boom:" in drawn(with_brackets.folder)


def test_a_pipe_gets_it_once_and_without_control_codes(training):
    console = Console(file=io.StringIO(), width=60)
    watch_run(training.folder, console, every=1)
    assert "\x1b" not in console.file.getvalue()
    assert console.file.getvalue().count("100/400 steps") == 1


def test_a_report_that_follows_is_written_until_the_end(training, monkeypatch):
    monkeypatch.setattr("flows.terminal.watch.SECONDS_BETWEEN_LOOKS", 0.1)
    page = training.folder / REPORT_FILE
    following = threading.Thread(target=follow_report, args=(training.folder,), daemon=True)
    following.start()
    for steps in (120, 140):
        training.train_to(steps)
        wait_until(lambda steps=steps: page.is_file() and f"{steps} steps recorded" in page.read_text())
        assert 'http-equiv="refresh"' in page.read_text()
    training.change(state="failed", error="x")
    following.join(PATIENCE_SECONDS)
    assert "Failed in: train" in page.read_text()
    assert 'http-equiv="refresh"' not in page.read_text()


class Terminal:
    """A real pseudo-terminal of 60 columns, and all that was written to it."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 60, 0, 0))
        os.set_blocking(self.ours, False)
        self.content = b""

    @property
    def written(self) -> str:
        """All of it; a character may have been written in part."""
        with contextlib.suppress(BlockingIOError):
            self.content += os.read(self.ours, 1 << 16)
        return self.content.decode(errors="ignore")

    def wait_for(self, text: str) -> None:
        """Read until ``text`` was written, escapes and ends of lines apart: long paths move where a line ends."""
        wait_until(
            lambda: text in " ".join(ESCAPES.sub("", self.written).split()),
            text,
            lambda: repr(self.written[-3000:]),
        )

    def wait_for_the_end_of(self, process: subprocess.Popen) -> int:
        """Read until it has ended: what nobody reads makes it wait. -> its exit code"""
        wait_until(lambda: self.written and process.poll() is not None, "its end")
        return process.wait()


@pytest.mark.integration
def test_on_a_terminal_it_follows_the_run_until_its_end(training):
    terminal = Terminal()
    argv = [sys.executable, "-m", "flows.terminal", "watch", str(training.folder), "--every", "0.2"]
    environment = os.environ | {"PYTHONPATH": python_path(), "TERM": "xterm-256color"}
    watching = subprocess.Popen(
        argv, stdin=terminal.theirs, stdout=terminal.theirs, stderr=terminal.theirs, env=environment
    )
    try:
        terminal.wait_for("100/400 steps")
        assert "\x1b[?1049h" in terminal.written  # a screen of its own
        training.train_to(222)
        terminal.wait_for("222/400 steps")
        tasks = read_run(training.folder).tasks
        ended = tasks[-1].model_copy(update={"state": "failed", "seconds": 1.0})
        training.change(state="failed", error="out of cheese", tasks=[*tasks[:-1], ended])
        assert terminal.wait_for_the_end_of(watching) == 0
        terminal.wait_for("goes on from its newest checkpoint")
    finally:
        watching.kill()
        watching.wait()
    left = terminal.written.split("\x1b[?1049l")[-1]  # the last picture stays where the command was given
    assert "out of cheese" in left
    assert "✗ train" in left


@pytest.mark.integration
def test_status_takes_the_run_as_report_does(training):
    store = str(training.folder.parent.parent)
    one = pairline("status", "last", "--store", store)
    assert one.returncode == 0
    assert "mix data" in one.stdout
    assert pairline("status", "--run", "last", "--store", store).stdout == one.stdout
