"""Hostile text through every output: terminals, artifacts, report, model card, commands, the chain's page, logs.

What is made is judged by parsers that know nothing of how it was escaped (``tests/hostile_text.py``).
"""

import io
import json
import logging
import re
import shlex
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import prefect.artifacts
import pytest
import yaml
from hypothesis import example, given, settings
from rich.console import Console

from dpo_core.contract.config import AdapterConfig
from dpo_core.contract.data_jobs import Finding, LengthStats, MixResult, SourceLedger
from dpo_core.contract.errors import ConfigError
from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.job import LOG_FILE
from dpo_core.contract.jobs import AnswerPair, BatchPlan, EvaluateResult
from dpo_core.contract.progress import ProgressEvent
from dpo_core.contract.refs import CheckpointRef, DatasetRef
from dpo_core.contract.store import write_json
from flows.terminal import cli
from flows.terminal import release as terminal_release
from flows.terminal.model_size import ModelSize
from flows.terminal.plan import Plan, show_plan
from flows.terminal.run_display import BarDisplay, LineDisplay, TaskNotices
from flows.terminal.show_page import show_page
from flows.terminal.source_size import SourceSize
from flows.terminal.status import show_run, show_runs
from flows.terminal.sweep import show_sweep_table
from tasks.events import chain
from tasks.gate.approval import APPROVAL_FILE, answered
from tasks.gate.rules import GATE_FILE, GateCheck
from tasks.handoff.config import HandoffConfig
from tasks.handoff.grpo_command import grpo_command
from tasks.handoff.schema import RLVRHandoff, RuleCheck
from tasks.image.image_ref import ImageRef
from tasks.launch.context import Context
from tasks.launch.own_folder import own_folder
from tasks.launch.step_log import step_log
from tasks.publish.model_card import CardInputs, render_card
from tasks.publish.uploaded_checkpoint import UploadedCheckpoint
from tasks.report.blocks import (
    Charts,
    Code,
    Column,
    Details,
    Heading,
    Notice,
    Page,
    PageSection,
    Sample,
    Samples,
    Table,
    Text,
    Tile,
    Tiles,
)
from tasks.report.compare import compare_page
from tasks.report.html import render_html
from tasks.report.lineage import LineageNode, lineage_chart
from tasks.report.markdown import render_markdown
from tasks.report.page import report_page
from tasks.report.question import Judged, question_markdown
from tasks.report.svg import Labels, Line, line_chart
from tasks.report.tables import samples_markdown
from tasks.run.files import read_run_files
from tasks.run.folder import RUN_FILE, RunRecord, TaskRecord, recorded_run
from tasks.show import artifacts
from tasks.show.run_log import make_logs_visible
from tasks.show.sweep_artifacts import show_sweep
from tasks.sweep.outcomes import SWEEP_FILE, Lead, MemberOutcome, SweepOutcome
from tests.hostile_text import EVERYTHING, EVIL, FEW, TEXTS, calm, harmless_markdown, inline_tokens, words
from tests.tasks.launch.test_run_job import Heard
from tests.tasks.report.made_run import HEX, config_of, handoff, make_run
from tests.tasks.report.test_page import LOADING, Reader

READABLE = TEXTS.map(lambda text: re.sub("[\ud800-\udfff]", "", text))  # what a file can hold
ALL = re.sub("[\ud800-\udfff\x00]", "", EVERYTHING)
VERY_FEW = settings(FEW, max_examples=FEW.max_examples // 4)  # the functions behind them are tried more often
UI = "http://127.0.0.1:4200"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def evaluation(text: str) -> EvaluateResult:
    answer = AnswerPair(prompt=text, before=text, after=text, before_passes=True, after_passes=False)
    return EvaluateResult(
        job_fingerprint="f",
        before={"loss": 0.7, text: 1.0},
        after={"loss": 0.5, text: 2.0},
        num_pairs=3,
        num_prompts=1,
        answers=(answer, answer),
    )


def checks(text: str) -> list[GateCheck]:
    return [GateCheck(rule=text, value=0.5, bound=0.7, passed=False, detail=text)]


def ledger(text: str) -> SourceLedger:
    return SourceLedger(
        label=text,
        content=text,
        format={text: 9},
        available_rows=20,
        rows_in=10,
        kept=8,
        truncated=1,
        dropped={text: 2},
        offenders={text: (3, 5)},
        counted={text: 1},
        findings=(
            Finding(reason=text, row=1, like=text, like_row=0, similarity=1.0, text=text, is_dropped=False),
        ),
    )


def sweep_of(text: str) -> SweepOutcome:
    members = (
        MemberOutcome(
            number=1,
            label=text,
            settings={"beta": 0.1, "loss": text},
            run=text,
            after={"loss": 0.5},
            errors={"loss": 0.1},
        ),
        MemberOutcome(
            number=2, label=text, settings={"beta": 0.2, "loss": text}, run=text, error=f"{text}: {text}"
        ),
    )
    leads = (Lead(metric=text, value=0.1, stderr=0.05),)
    return SweepOutcome(metric="loss", winner=1, second=2, leads=leads, members=members)


def page_of(text: str) -> Page:
    chart = lineage_chart(
        [LineageNode("a", text, text, text, 0), LineageNode("b", text, text, text, 1, ("a",))]
    )
    curve = line_chart(
        Labels(text, text, text), [Line(text, "blue", [(1, 2.0), (2, 3.0)]), Line(text, "green", [(1, 2.0)])]
    )
    blocks = (
        Text(text),
        Heading(text),
        Code(text),
        Charts((chart, curve)),
        Tiles((Tile(text, text, text, text),)),
        Table((Column(text), Column(text, "number")), ((text, text), (text, "last")), text),
        Samples((Sample(text, text, text, True, False),)),
        Notice(text, text),
        Details(text, (Text(text), Code(text))),
    )
    return Page(
        title=text,
        subtitle=text,
        badge=(text, "good"),
        summary=blocks,
        sections=(PageSection(text, "a", blocks),),
        footer=text,
    )


def record_of(text: str) -> RunRecord:
    steps = [
        TaskRecord(name=text, state="completed", started=NOW, seconds=1.0),
        TaskRecord(name=text, started=NOW),
    ]
    return RunRecord(
        name="demo", state="failed", started=NOW, pid=1, steps=steps, outputs={text: text}, error=text
    )


def uploaded_at(text: str) -> UploadedCheckpoint:
    return UploadedCheckpoint(
        kind="hub", uri=text, revision=text, repo_id=text, endpoint=text, files={text: text}
    )


def handoff_with(text: str) -> RLVRHandoff:
    made = handoff("demo")
    return made.model_copy(
        update={
            "checkpoint": uploaded_at(text),
            "rules": (RuleCheck(rule=text, passed=True, detail=text),),
            "grpo_command": text,
            "probe": made.probe.model_copy(update={"prompt": text, "answer": text}),
        }
    )


# --- terminals ---------------------------------------------------------------------------------------------------------


class AnsweringConsole(Console):
    """A person who approves."""

    def __init__(self) -> None:
        super().__init__(file=io.StringIO(), width=200)
        self.answers = iter(("approve", "Ann", "better"))

    def input(self, *_: Any, **__: Any) -> str:
        return next(self.answers)


def in_folder(show: Callable[[Console, Path], None], **files: Any) -> Callable[[Console], None]:
    def shown(console: Console) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                write_json(Path(folder, {"gate": GATE_FILE, "sweep": SWEEP_FILE}.get(name, name)), content)
            show(console, Path(folder))

    return shown


def show_status(text: str, console: Console) -> None:
    with tempfile.TemporaryDirectory() as store:
        folder = Path(store) / "runs" / "20260101-000000-demo"
        write_json(folder / RUN_FILE, record_of(text))
        show_runs(Path(store), console)
        show_run(Path(store), "last", console)


def show_displays(text: str, console: Console) -> None:
    most = text[:200]
    event = ProgressEvent(step=most, done=1, total=2, unit=most, rate=1.0, phase=most, metrics={"loss": 1.0})
    for display in (LineDisplay(console), BarDisplay(console)):
        with display:
            for ended in ({}, {"state": "failed", "seconds": 1.0}):
                display.task(Path("/run"), TaskRecord(name=text, started=NOW, **ended))
                if isinstance(display, LineDisplay):
                    display._last_line = 0.0
                display.progress(event)
    message = f"failed with exception: Error - Retry 1/2 will start {text}"
    TaskNotices(console).emit(logging.LogRecord("x", logging.INFO, "", 1, message, (), None))


def show_whole_plan(text: str, console: Console) -> None:
    show_plan(
        Plan(
            name=text,
            steps=((text, text),),
            model=ModelSize(7, text),
            sources=(SourceSize(text, text, 1, 2),),
            batch=BatchPlan(global_pairs=4, per_device_pairs=4, accumulation=1, num_processes=1),
            num_steps=3,
            memory_bytes={text: 5},
            disk_bytes={text: 5},
        ),
        console,
    )


TERMINAL: dict[str, Callable[[str, Console], None]] = {
    "the gate": lambda text, console: in_folder(
        terminal_release.show_gate, gate=[check.model_dump() for check in checks(text)]
    )(console),
    "a sweep": lambda text, console: in_folder(show_sweep_table, sweep=sweep_of(text))(console),
    "the status": show_status,
    "progress": show_displays,
    "a plan": show_whole_plan,
    "a compared page": lambda text, console: show_page(page_of(text), console),
    "the question": lambda text, console: terminal_release.ask_at_terminal(console, nullcontext)(
        question_markdown(
            text, text, checks(text), Judged(evaluation(text)), EvaluationConfig(num_samples_shown=1), UI
        )
    ),
}


@pytest.mark.parametrize("name", TERMINAL)
@VERY_FEW
@given(READABLE)
@example(ALL)
def test_a_terminal_is_not_steered(name, text):
    console = AnsweringConsole()
    TERMINAL[name](text, console)
    calm(console.file.getvalue())


@pytest.mark.parametrize("name", TERMINAL)
def test_brackets_and_names_between_colons_are_no_markup(name):
    console = AnsweringConsole()
    TERMINAL[name]("[bold]x[/bold] [link=http://evil.example]y[/link] :boom:", console)
    written = words(console.file.getvalue().replace("│", " "))
    assert "[bold]x[/bold]" in written
    assert ":boom:" in written


def test_errors_notes_and_defects_are_told_calmly(monkeypatch, capsys):
    def fail(error: Exception) -> None:
        raise error

    failure = ConfigError(ALL)
    failure.add_note(ALL)
    for error, code in ((failure, ConfigError.exit_code), (RuntimeError(ALL), 1)):
        monkeypatch.setattr(cli, "app", lambda error=error: fail(error))
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == code
        assert "evil" in calm(capsys.readouterr().err)


def test_an_accepted_hand_off_is_told_in_lines_of_ours(monkeypatch, capsys):
    import flows.rlvr_intake
    import flows.serve.local_prefect

    text = "x\nok    forged: yes\x1b[2J"
    accepted = SimpleNamespace(
        rules=[RuleCheck(rule=text, passed=False, detail=text)],
        signed_by=text,
        checkpoint=handoff_with(text).checkpoint,
    )
    monkeypatch.setattr(flows.serve.local_prefect, "prepare_prefect", lambda store: False)
    monkeypatch.setattr(flows.rlvr_intake, "rlvr_intake", lambda *_, **__: accepted)
    cli.intake("handoff.json")
    lines = calm(capsys.readouterr().out).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["FAIL", "signed", "accepted:"]


# --- logs --------------------------------------------------------------------------------------------------------------


@VERY_FEW
@given(READABLE)
@example(ALL)
def test_a_step_s_lines_are_visible_in_its_log_and_for_all_who_hear_them(text):
    heard = Heard()
    with tempfile.TemporaryDirectory() as folder:
        with step_log(Path(folder), Context(lines=heard)) as log:
            log.head(text)
            log.line(text)
        calm((own_folder(Path(folder)) / LOG_FILE).read_text())
    calm("\n".join([*log.last_lines, *heard.lines]))


def test_a_progress_bar_is_lines_and_paint_comes_off(tmp_path):
    with step_log(tmp_path, Context()) as log:
        log.line("\x1b[31m 1/2\r 2/2\x1b[0m\r")
    assert list(log.last_lines) == [" 1/2", " 2/2"]


@pytest.fixture
def _factory_put_back():
    before = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.usefixtures("_factory_put_back")
def test_log_records_and_their_tracebacks_are_visible(tmp_path):
    make_logs_visible()
    made = logging.getLogRecordFactory()
    make_logs_visible()
    assert logging.getLogRecordFactory() is made
    stream, log = io.StringIO(), logging.getLogger("tasks.hostile")
    handler = logging.StreamHandler(stream)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with recorded_run(tmp_path, "demo", config_of(tmp_path)) as run:
            log.info("told %s of %d", ALL, 3)
            try:
                raise KeyError(1) from ValueError(ALL)
            except KeyError:
                log.exception(ALL)
    finally:
        log.removeHandler(handler)
    assert "of 3" in stream.getvalue()
    assert "ValueError" in calm(stream.getvalue())
    calm((run.folder / "run.log").read_text())


# --- Markdown ----------------------------------------------------------------------------------------------------------

Made = tuple[str, Any, str]


@pytest.fixture(scope="module")
def made():
    """Artifacts that were made: (key, what it holds, description)."""
    found: list[Made] = []

    def create(artifact: Any, *_: Any, **__: Any) -> SimpleNamespace:
        content = getattr(artifact, "markdown", None) or artifact.table
        found.append((artifact.key, content, artifact.description))
        return SimpleNamespace(id="made")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefect.artifacts.Artifact, "create", create)
        yield found


def chain_client(text: str) -> Any:
    run = SimpleNamespace(
        flow_id=UUID(int=1),
        id=HEX,
        name=text,
        state=SimpleNamespace(name=text),
        start_time=NOW,
        total_run_time=timedelta(seconds=3),
    )
    flow = SimpleNamespace(id=run.flow_id, name=text)
    return SimpleNamespace(read_flow_runs=lambda **_: [run], read_flows=lambda **_: [flow])


def show_all(text: str) -> int:
    """Make every artifact. -> how many"""
    mixture = MixResult(
        job_fingerprint="f",
        data=DatasetRef(path="/d", fingerprint=HEX),
        train_rows=6,
        held_out_rows=1,
        per_source=(ledger(text),),
        chat_template_sha256="t",
        lengths=LengthStats(mean_prompt=1, mean_chosen=1, mean_rejected=1, max_sequence=3, total=9),
    )
    checkpoint = CheckpointRef(
        path="/x", fingerprint=HEX, tokenizer_fingerprint=HEX, source=text, revision=text, files={text: text}
    )
    with tempfile.TemporaryDirectory() as folder:
        artifacts.show_mixture(mixture, "dpo")
        artifacts.show_checkpoint(checkpoint, "dpo")
        artifacts.show_evaluation(evaluation(text), 2, "dpo")
        image = ImageRef(variant="cpu", image_id=text, size_bytes=1, digest=text, commit=text)
        artifacts.show_image(image, Path(folder), "dpo")
        artifacts.show_gate(checks(text), "dpo")
        artifacts.show_approval(answered("approve", text, text, "terminal"), "dpo")
        artifacts.show_upload(uploaded_at(text), "dpo")
        artifacts.show_handoff(handoff_with(text), Path(folder) / "handoff.json", "dpo")
    return 9


@VERY_FEW
@given(text=READABLE)
@example(text=ALL)
def test_artifacts_hold_text_alone(made, text):
    made.clear()
    assert show_all(text) == len(made)
    for _, content, description in made:
        harmless_markdown(description)
        if isinstance(content, str):
            harmless_markdown(content)
        else:
            for row in content:
                for name, cell in row.items():
                    calm(name)
                    harmless_markdown(str(cell))  # Prefect's page reads it as Markdown


def test_the_hand_off_shows_what_the_model_answered(made):
    made.clear()
    text = f"![x]({EVIL}/x.png)<b>"
    artifacts.show_handoff(handoff_with(text), Path("/store/handoff.json"), "dpo")
    assert f"it answered '{text}'." in harmless_markdown(made[0][1])


def test_a_sweep_s_picture_is_the_only_one(made, tmp_path, monkeypatch):
    made.clear()
    (tmp_path / "sweep.png").write_bytes(b"picture")
    monkeypatch.setattr("tasks.show.sweep_artifacts.draw_sweep", lambda outcome, folder: folder / "sweep.png")
    text = "](x)![p](http://evil.example/a.png) <b> \x1b[2J"
    show_sweep(sweep_of(text), tmp_path, "dpo")
    (_, rows, told), (_, picture, _) = made
    harmless_markdown(told)
    harmless_markdown(picture, num_pictures=1)
    for row in rows:
        for cell in row.values():
            harmless_markdown(str(cell))


@VERY_FEW
@given(text=READABLE)
@example(text=ALL)
def test_the_page_of_a_chain_links_to_its_runs_alone(made, text):
    made.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain, "url_for", lambda run: f"{UI}/runs/flow-run/{run.id}")
        chain.show_chain(chain_client(text), "chain:1a2b")
    seen = harmless_markdown(made[0][1], (f"{UI}/runs/flow-run/",))
    assert [part.type for part in inline_tokens(made[0][1])].count("link_open") == 1
    assert "chain:1a2b" in seen


@VERY_FEW
@given(READABLE)
@example(ALL)
def test_question_samples_and_report_hold_text_alone(text):
    question = question_markdown(
        "mine", text, checks(text), Judged(evaluation(text)), EvaluationConfig(num_samples_shown=1), UI
    )
    assert "Release mine?" in harmless_markdown(question, (f"{UI}/artifacts/key/mine-",))
    harmless_markdown(samples_markdown(evaluation(text), 2))
    harmless_markdown(render_markdown(page_of(text)), num_pictures=4)


@VERY_FEW
@given(READABLE)
@example(ALL)
def test_the_model_card_is_its_header_and_text(text):
    parent = CheckpointRef(
        path="/x", fingerprint=text, tokenizer_fingerprint="t", source=f"org/{text}", revision=text or "c"
    )
    card = render_card(
        CardInputs(
            name=text,
            parent=parent,
            sources=(ledger(text),),
            data_fingerprint=text,
            metrics_after={text: 1.0},
            adapter=AdapterConfig(kind="lora", target_modules=(text or "q_proj",)),
        )
    )
    header, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL).groups()
    loaded = yaml.safe_load(header)
    assert loaded.pop("base_model").startswith("org/")
    assert loaded == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["dpo", "preference-tuning", "pairline"],
    }
    assert "Aligned with direct preference optimization" in harmless_markdown(body)


# --- HTML and commands -------------------------------------------------------------------------------------------------


def harmless_html(page: str) -> Reader:
    read = Reader(calm(page))
    assert not read.tags & {"script", "img", "iframe", "object", "embed", "link", "form", "base"}
    assert not [name for _, name, _ in read.attributes if name.startswith("on")]
    assert {value[:1] for _, name, value in read.attributes if name in LOADING} <= {"#"}
    return read


@VERY_FEW
@given(READABLE)
@example(ALL)
def test_the_report_s_html_holds_text_alone(text):
    read = harmless_html(render_html(page_of(text)))
    assert read.tags | {"br"} == harmless_html(render_html(page_of("two\nlines"))).tags | {"br"}


@VERY_FEW
@given(READABLE)
@example(ALL)
def test_commands_run_what_they_are_made_for_alone(text):
    command, ordinary = (
        grpo_command(uploaded_at(given), HandoffConfig(), "demo") for given in (text, "org/name")
    )
    calm(command)
    assert command.count("\n") == ordinary.count("\n")
    if "$'" not in command:  # words of bash alone, which tests/tasks/text/test_escape.py has bash read
        there = shlex.split(command)
        assert len(there) == len(shlex.split(ordinary))
        assert there[there.index("--model_revision") + 1] == text


def test_a_run_that_is_hostile_in_all_its_files(tmp_path):
    answer = AnswerPair(prompt=ALL, before=ALL, after=ALL)
    folders = [
        make_run(
            tmp_path / name,
            answer=answer,
            label=ALL,
            checkpoint={"source": ALL},
            after={"loss": 1.0, ALL: 2.0},
            steps=4,
            **more,
        )
        for name, more in (("a", {}), ("b", {"fails": RuntimeError(ALL)}))
    ]
    for folder in folders:
        write_json(folder / GATE_FILE, [check.model_dump() for check in checks(ALL)])
        write_json(folder / APPROVAL_FILE, answered("reject", ALL, ALL, "terminal"))
        environment = json.loads((folder / "environment.json").read_bytes())
        environment |= {"commit": ALL, "directory": ALL, "processor": ALL, "packages": {ALL: ALL}}
        write_json(folder / "environment.json", environment)
    runs = [read_run_files(folder) for folder in folders]
    for page in (*map(report_page, runs), compare_page(runs)):
        harmless_html(render_html(page))
        harmless_markdown(render_markdown(page), num_pictures=render_markdown(page).count("](data:image/"))
        console = AnsweringConsole()
        show_page(page, console)
        calm(console.file.getvalue())
