"""A run's own files tell its story, also of a run that failed or was killed."""

import io
import json
import os
import subprocess
import sys

import pytest
from rich.console import Console

from dpo_core.contract.errors import DataError, StoreError
from flows.settings.stage_config import StageConfig
from flows.terminal.status import duration, show_run, show_runs
from tasks.run.folder import CONFIG_FILE, RUN_FILE, is_alive, read_run, read_runs, recorded_run
from tasks.run.state import run_state

CONFIG = StageConfig.model_validate(
    {"checkpoint": {"source": "o/m"}, "data": {"sources": [{"source": "o/d"}]}}
)


def shown(function, *arguments) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    function(*arguments, console)
    return console.export_text()


def test_a_finished_run_records_its_steps_results_and_config(tmp_path):
    (tmp_path / "mix" / "ab").mkdir(parents=True)
    told = []
    with recorded_run(
        tmp_path,
        "demo",
        CONFIG,
        "flow-run-id",
        on_task=lambda folder, task: told.append((task.name, task.state)),
    ) as run:
        assert read_run(run.folder).state == "running"
        with run.task("mix data"):
            pass
        run.output("mix", tmp_path / "mix" / "ab")
    record = read_run(run.folder)
    assert (record.state, record.flow_run_id, record.error) == ("completed", "flow-run-id", None)
    assert told == [("mix data", "running"), ("mix data", "completed")]
    assert (run.folder / "mix").resolve() == tmp_path / "mix" / "ab"
    assert StageConfig.model_validate_json((run.folder / CONFIG_FILE).read_bytes()) == CONFIG


@pytest.mark.parametrize(
    "place", [lambda path: path.symlink_to("/dev/zero"), os.mkfifo, lambda path: path.write_text("[" * 9999)]
)
def test_a_record_that_is_none_is_left_out_and_not_waited_for(tmp_path, place):
    with recorded_run(tmp_path, "demo", CONFIG) as run:
        pass
    (tmp_path / "runs" / "planted").mkdir()
    place(tmp_path / "runs" / "planted" / RUN_FILE)
    assert [folder for folder, _ in read_runs(tmp_path)] == [run.folder]
    with pytest.raises(StoreError, match=r"run\.json"):
        read_run(tmp_path / "runs" / "planted")


def test_a_failed_run_records_where_and_why(tmp_path):
    with pytest.raises(DataError), recorded_run(tmp_path, "demo", CONFIG) as run, run.task("mix data"):
        raise DataError("no rows")
    record = read_run(run.folder)
    assert (record.state, record.error, record.tasks[0].state) == ("failed", "no rows", "failed")
    text = shown(show_runs, tmp_path)
    assert "failed" in text
    assert "mix data (failed)" in text
    assert "error: no rows" in shown(show_run, tmp_path, "last")


def test_a_record_of_an_earlier_version_calls_its_tasks_steps(tmp_path):
    with recorded_run(tmp_path, "demo", CONFIG) as run, run.task("train"):
        pass
    record = json.loads((run.folder / RUN_FILE).read_text())
    record["steps"] = record.pop("tasks")
    (run.folder / RUN_FILE).write_text(json.dumps(record))
    assert [task.name for task in read_run(run.folder).tasks] == ["train"]


def test_a_cancelled_run_is_told_from_a_failed_one(tmp_path):
    with pytest.raises(KeyboardInterrupt), recorded_run(tmp_path, "demo", CONFIG) as run, run.task("train"):
        raise KeyboardInterrupt
    record = read_run(run.folder)
    assert (record.state, record.tasks[0].state) == ("cancelled", "cancelled")


def test_two_runs_in_one_second_have_two_folders(tmp_path):
    with recorded_run(tmp_path, "demo", CONFIG) as one, recorded_run(tmp_path, "demo", CONFIG) as two:
        assert one.folder != two.folder
    assert len(read_runs(tmp_path)) == 2


def test_a_killed_run_shows_as_killed(tmp_path):
    with recorded_run(tmp_path, "demo", CONFIG) as run:
        child = subprocess.Popen([sys.executable, "-c", ""])
        child.wait()
        record = read_run(run.folder)
        assert run_state(record) == "running"
        assert is_alive(record)
        assert run_state(record.model_copy(update={"pid": child.pid})) == "killed"


def test_a_store_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "store").write_text("")
    with (
        pytest.raises(StoreError, match="making the store"),
        recorded_run(tmp_path / "store", "demo", CONFIG),
    ):
        pass


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (4.21, "4.2 s"), (200, "3 min 20 s"), (3720, "1 h 02 min")]
)
def test_durations_are_readable(seconds, text):
    assert duration(seconds) == text
