"""The command line as a person meets it: sentences and exit codes instead of tracebacks."""

import json
import logging

import pytest
from rich.console import Console

from dpo_core.contract.progress import ProgressEvent
from flows.terminal.run_display import ClusterNotices, LineDisplay, TaskNotices, progress_text
from tasks.launch.cluster_job import ClusterJob
from tasks.mix_data import mix_data
from tasks.mix_sets import mix_sets
from tests.flows.conftest import RECIPES, pairline


@pytest.mark.integration
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("run", "nope.yaml"), 10, "Error: The recipe nope.yaml does not exist."),
        (
            ("plan", str(RECIPES / "tulu3-8b.yaml"), "--set", "loss.bta=1"),
            10,
            "loss.bta is not known (did you mean beta?)",
        ),
        (
            ("plan", str(RECIPES / "tulu3-8b.yaml"), "--set", "train.global_batch_pairs=9"),
            10,
            "cannot share equally",
        ),
        (("status", "--store", "nowhere"), 10, "Error: There is no store at nowhere."),
        (("bogus",), 2, "No such command"),
    ],
)
def test_an_error_is_a_sentence_with_an_exit_code(tmp_path, arguments, code, message):
    done = pairline(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.integration
def test_the_schema_describes_every_setting():
    schema = json.loads(pairline("schema").stdout)
    fields = [
        field for section in schema["$defs"].values() for field in section.get("properties", {}).values()
    ]
    assert len(fields) > 50
    assert all("description" in field for field in fields)


@pytest.mark.integration
def test_the_plan_starts_nothing(tmp_path):
    done = pairline("plan", str(RECIPES / "olmo2-7b.yaml"), cwd=tmp_path)
    assert done.returncode == 0
    assert "Effective batch: 128 pairs = 32 processes x 4 per device x 1 accumulation" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_progress_is_told_with_its_rate():
    event = ProgressEvent(
        step="train",
        done=1200,
        total=9000,
        unit="steps",
        rate=3.14159,
        metrics={"loss": 0.68123, "rewards/accuracies": 0.75, "other": 1},
    )
    assert progress_text(event) == "1,200/9,000 steps, 3.14 steps/s, loss 0.6812, accuracies 0.75"


def test_without_a_terminal_there_is_at_most_a_line_in_ten_seconds(capsys):
    display = LineDisplay(Console(width=100))
    for done in range(100):
        display.progress(ProgressEvent(step="mix", done=done, total=100, unit="rows"))
    assert capsys.readouterr().out.count("\n") <= 1


def test_a_job_in_a_clusters_queue_is_told_whenever_it_stands_elsewhere(capsys):
    notices = ClusterNotices(Console(width=200))
    waits = ClusterJob("train", "48", "x", "PENDING", reason="Priority", expected="2026-03-01T17:40:00")
    for job in (waits, waits, ClusterJob("train", "48", "x", "RUNNING", nodes="n[1-4]")):
        notices(job)
    assert capsys.readouterr().out.splitlines() == [
        "  Job 48 of step train: PENDING, waits for Priority, expected to start 2026-03-01T17:40:00",
        "  Job 48 of step train: RUNNING on n[1-4]",
    ]


def test_a_retry_is_told_in_one_line(capsys):
    log = logging.Logger("prefect.task_runs")
    log.addHandler(TaskNotices(Console(width=200)))
    log.warning(
        "Task run failed with exception: StepCrashed('a\nb') - Retry 1/6 will start 5 second(s) from now"
    )
    log.warning("Finished in state Completed()")
    assert capsys.readouterr().out == "  failed (StepCrashed), retry 1/6 starts 5 second(s) from now\n"


@pytest.mark.parametrize("task", [mix_data, mix_sets])
def test_what_is_odd_about_the_data_is_told_whole(capsys, task):
    """As the tasks' own loggers say it. What warns of the policy is told once, by the verdict."""
    log, data = logging.Logger("prefect.task_runs"), {"task_name": task.name}
    log.addHandler(TaskNotices(Console(width=60)))
    log.info("4 pairs", extra=data)
    log.warning("data: %d %% of the pairs are cut, so answers end without their ends", 40, extra=data)
    log.warning("answers grow", extra={"task_name": "evaluate"})
    log.warning("of no task")
    told = "Warning: data: 40 % of the pairs are cut, so answers end without their ends\n"
    assert capsys.readouterr().out == told


def test_what_is_waited_for_is_told(capsys):
    """By launchers and flows, within a run alone; what they merely note is not."""
    launcher = logging.getLogger("tasks.launch.patience")
    with TaskNotices(Console(width=60)).listening():
        launcher.warning("The engine is away.\x1b[2J Waiting up to %.0f s for it.", 300)
        launcher.info("It is there.")
        logging.getLogger("flows.accelerator").warning("All slots are taken.")
        logging.getLogger("dpo_core.store").warning("of a step, which has its own log")
    launcher.warning("The engine is away.")
    assert capsys.readouterr().out.splitlines() == [
        "  The engine is away.\\x1b[2J Waiting up to 300 s for it.",
        "  All slots are taken.",
    ]
