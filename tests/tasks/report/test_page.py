"""The report page: everything is on it, nothing is loaded by it, and nothing that a data set holds can act in it."""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dpo_core.contract.answers_file import ANSWERS_FILE, AnswersOfStep, ToldAnswer, keep_answers
from dpo_core.contract.errors import StepCrashed, StoreError
from dpo_core.contract.jobs import AnswerPair
from dpo_core.contract.results import RESULT_FILE
from dpo_core.contract.store import write_json
from tasks.gate.approval import APPROVAL_FILE, answered
from tasks.gate.rules import GATE_FILE, GateCheck
from tasks.report.html import POLICY, render_html
from tasks.report.markdown import render_markdown
from tasks.report.page import NOTHING_HELD_IT, REPORT_FILE, report_page, write_report
from tasks.run.files import read_run_files
from tasks.run.folder import RUN_FILE, read_run
from tests.tasks.report.made_run import AFTER, config_of, make_run

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> ![p](http://evil.example/a.png) "
    "[go](javascript:alert(3))\n"
    '| a | b |\n``` </pre><svg onload=alert(4)> " onmouseover="alert(5)'
)
VOID = {"meta", "br", "img", "input", "hr"}
LOADING = {"src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"}


class Reader(HTMLParser):
    """Checks that tags are closed in order, and collects what a page consists of."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(folder: Path) -> Reader:
    write_report(folder)
    return Reader((folder / REPORT_FILE).read_text())


def test_a_full_run_shows_every_section(tmp_path):
    page = page_of(make_run(tmp_path / "store"))
    for title in (
        "Held-out evaluation",
        "Samples",
        "Training",
        "Data",
        "Dropped rows",
        "Time and speed",
        "Lineage",
        "Hand-off to RLVR",
        "Reproduce",
    ):
        assert title in page.text, title
    for fact in (
        "identical pair",
        "no label left",
        "truncation left no token",
        "median 11",
        "The Baltic",
        "✓ keeps its instruction",
        "✗ breaks its instruction",
        "hf://org/dpo@",
        "python grpo.py",
        "resumed",
        "pairline run",
        "Learning rate",
        "tokens a pair",
        "0.50 → 0.85",
        "torch ",
        "10 rows computed, 90 were in the cache",
    ):
        assert fact in page.text, fact


def test_before_the_evaluation_the_page_shows_the_newest_answers_of_the_training(tmp_path):
    folder = make_run(tmp_path, fails=StepCrashed("x"))
    train = Path(read_run(folder).jobs[-1].folder)
    assert "The Baltic" not in page_of(folder).text
    for step, answer in ((0, "The Baltic, I think."), (20, "The Black Sea.")):
        told = ToldAnswer.cut("Name a sea", answer, None)
        keep_answers(train / ANSWERS_FILE, AnswersOfStep(step=step, answers=(told,)))
    text = page_of(folder).text
    for fact in ("Samples", "after step 20", "Name a sea", "Baltic, I think.", "Black Sea."):
        assert fact in text, fact
    (train / ANSWERS_FILE).write_text('{"step": 0, "answers": [{"prompt": 3}]}\n')
    assert "after step 20" not in page_of(folder).text


def test_the_page_loads_nothing_and_runs_nothing(tmp_path):
    page = page_of(make_run(tmp_path / "store"))
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base", "form", "img"}
    assert {value[:1] for _, name, value in page.attributes if name in LOADING} == {"#"}
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "url(" not in (
        page_text := render_html(report_page(read_run_files(next((tmp_path / "store/runs").iterdir()))))
    )
    assert "@import" not in page_text
    assert "default-src 'none'" in POLICY
    assert POLICY in page_text


def test_every_chart_is_told_in_words(tmp_path):
    page = page_of(make_run(tmp_path / "store"))
    pictures = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"]
    assert len(pictures) == 9 + 3 + 1 + 1  # curves, lengths, time, lineage
    assert any(
        picture.startswith("Reward accuracy (share of pairs): ") and "to 0.9" in picture
        for picture in pictures
    )
    assert all(("svg", "role", "img") in page.attributes for _ in pictures)


def test_hostile_text_stays_text(tmp_path):
    answer = AnswerPair(prompt=HOSTILE, before=HOSTILE, after=HOSTILE)
    folder = make_run(tmp_path / "store", answer=answer, label=HOSTILE, checkpoint={"source": HOSTILE})
    page = page_of(folder)
    assert not page.tags & {"script", "img"}
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") >= 4
    markdown = render_markdown(report_page(read_run_files(folder)))
    assert "<script" not in markdown.replace("<br>", "")
    assert not re.search(r"(?<!\\)\]\((http|javascript)", markdown)
    assert markdown.count("](data:image/svg+xml;base64,") == 4  # curves, lengths, time, lineage
    table = next(line for line in markdown.splitlines() if "evil.example" in line and line.startswith("| "))
    assert re.sub(r"\\.", "", table).count("|") == 4


def test_a_failed_run_says_where_why_and_how_to_go_on(tmp_path):
    folder = make_run(tmp_path / "store", fails=StepCrashed("Step train ended with <exit> code 1"))
    page = page_of(folder)
    for fact in (
        "Failed in: train",
        "Step train ended with <exit> code 1",
        "Traceback: out of cheese <b>",
        "log.txt",
        "goes on from its newest checkpoint",
        f"pairline run {folder / 'config.json'}",
        "40 steps recorded",
    ):
        assert fact in page.text, fact
    assert '{"pairline"' not in page.text
    assert "Held-out evaluation" not in page.text


def test_the_gate_and_the_approval_stand_on_top(tmp_path):
    folder = make_run(tmp_path / "store")
    checks = [
        GateCheck(rule="held-out accuracy at least", value=0.85, bound=0.6, passed=True),
        GateCheck(
            rule="KL to reference at most", value=None, bound=0.1, passed=False, detail="was not measured"
        ),
    ]
    write_json(folder / GATE_FILE, [check.model_dump() for check in checks])
    write_json(folder / APPROVAL_FILE, answered("reject", "A. Reader", "answers are <b>odd</b>", "terminal"))
    record = read_run(folder).model_copy(
        update={"state": "failed", "error": "A rule fails", "error_kind": "gate"}
    )
    write_json(folder / RUN_FILE, record)
    summary = page_of(folder).text.split("Held-out evaluation")[0]
    for fact in (
        "not released",
        "nothing was uploaded",
        "held-out accuracy at least",
        "FAILS was not measured",
        "Rejected by A. Reader",
        "answers are <b>odd</b>",
    ):
        assert fact in summary, fact


def test_what_a_later_run_finished_is_not_claimed_by_the_one_that_failed(tmp_path):
    folder = make_run(tmp_path / "store", fails=StepCrashed("x"))
    os.utime(make_run(tmp_path / "store") / "train" / "result.json")
    failed = page_of(folder).text
    assert "Failed in: train" in failed
    assert "40 steps recorded" in failed
    assert "trained weights" not in failed


def test_a_killed_run_says_so(tmp_path):
    folder = make_run(tmp_path / "store", fails=StepCrashed("x"))
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    record = read_run(folder)
    last = record.tasks[-1].model_copy(update={"state": "running", "seconds": None})
    write_json(
        folder / RUN_FILE,
        record.model_copy(
            update={
                "state": "running",
                "pid": child.pid,
                "seconds": None,
                "error": None,
                "tasks": [*record.tasks[:-1], last],
            }
        ),
    )
    page = page_of(folder)
    assert "Killed in: train" in page.text
    assert "did not end" in page.text


def test_a_checkpoint_that_is_worse_and_left_all_the_same_is_said_to_have_had_no_gate(tmp_path):
    worse = make_run(tmp_path / "worse", after=AFTER | {"rewards/accuracies": 0.0})
    assert NOTHING_HELD_IT in page_of(worse).text
    assert NOTHING_HELD_IT not in page_of(make_run(tmp_path / "other")).text
    check = GateCheck(rule="length ratio", value=0.5, bound=1.3, passed=True)
    write_json(worse / GATE_FILE, [check.model_dump()])
    assert NOTHING_HELD_IT not in page_of(worse).text


def test_a_run_without_a_step_still_has_a_page(tmp_path):
    from tasks.run.folder import recorded_run

    with pytest.raises(RuntimeError), recorded_run(tmp_path, "demo", config_of(tmp_path)) as run:
        raise RuntimeError("too early")
    assert "before the first task" in page_of(run.folder).text


def test_what_a_mixture_is_warned_of_stands_on_the_page_and_in_markdown(tmp_path):
    folder = make_run(tmp_path / "store")
    run = read_run_files(folder)
    warned = run.mixture.model_copy(update={"warnings": ("No end mark: x <b>",)})
    write_json(run.steps["mix"].folder / RESULT_FILE, warned)
    page = page_of(folder)
    assert ("p", "class", "warn") in page.attributes
    assert "No end mark: x <b>" in page.text.split("Dropped rows")[0]
    assert "b" not in page.tags
    assert "No end mark: x &lt;b&gt;" in render_markdown(report_page(read_run_files(folder)))


def test_a_moved_store_still_gives_the_whole_page(tmp_path):
    folder = make_run(tmp_path / "store")
    moved = Path(shutil.move(tmp_path / "store", tmp_path / "elsewhere")) / "runs" / folder.name
    page = page_of(moved)
    assert "The Baltic" in page.text
    assert "hf://org/dpo@" in page.text


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(StoreError, match=r"run\.json"):
        write_report(tmp_path)


def test_reading_a_report_again_needs_neither_prefect_nor_torch(tmp_path):
    folder = make_run(tmp_path / "store")
    script = (
        "import sys; from pathlib import Path; from tasks.report.page import write_report; "
        f"write_report(Path({str(folder)!r})); sys.exit('prefect' in sys.modules or 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        check=False,
        timeout=120,
    )
    assert done.returncode == 0
