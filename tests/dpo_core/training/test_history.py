"""What earlier starts have written down, of a run of any length."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from dpo_core.contract import metrics_file
from dpo_core.contract.answers_file import ANSWERS_FILE
from dpo_core.contract.metrics_file import EVALUATIONS_FILE, METRICS_FILE, each_step, read_metrics
from dpo_core.training.history import drop_after, forget_after
from dpo_core.training.while_training import seconds_since
from tests.tiny_stage import TinyStage


def write_steps(path: Path, steps: Sequence[int], torn: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"step": step, "step_seconds": 2.0}) + "\n" for step in steps) + torn)
    return path


def test_the_clock_of_evaluations_counts_steps_beyond_what_a_page_reads(
    stage: TinyStage, tmp_path, monkeypatch
):
    monkeypatch.setattr(metrics_file, "LARGEST_METRICS_BYTES", 200)
    path = write_steps(tmp_path / METRICS_FILE, range(1, 31))
    assert len(read_metrics(path)) < 10
    job = stage.train_job(tmp_path)
    assert seconds_since(job, [{"step": 10.0}, {"step": 20.0}]) == 20.0
    assert seconds_since(job, []) == 60.0


def test_steps_end_at_a_line_that_is_none(tmp_path):
    path = write_steps(tmp_path / METRICS_FILE, (1, 2), torn='{"step": 3')
    assert [step["step"] for step in each_step(path)] == [1, 2]
    assert list(each_step(tmp_path / "not there")) == []


@pytest.mark.parametrize("torn", ["", '{"step": 2, "st', "\0\0\0\n"])
def test_what_was_written_of_later_steps_goes(stage: TinyStage, tmp_path, torn: str):
    names = (METRICS_FILE, EVALUATIONS_FILE, ANSWERS_FILE)
    paths = [write_steps(tmp_path / name, (1, 2, 3, 4), torn) for name in names]
    forget_after(stage.train_job(tmp_path), 2)
    for path in paths:
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_file_without_later_steps_is_left_alone(tmp_path):
    path = write_steps(tmp_path / METRICS_FILE, (1, 2))
    before = path.stat()
    drop_after(path, 2)
    drop_after(tmp_path / "not there", 2)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
