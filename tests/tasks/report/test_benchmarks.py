"""Benchmarks in the report and where runs are compared: scores with errors, the change with its own."""

from pathlib import Path

import pytest

from dpo_core.contract.benchmark_job import BenchmarkJob, BenchmarkResult
from dpo_core.contract.benchmarks import BENCHMARKS_FILE, Benchmarks, compared
from dpo_core.contract.refs import CheckpointRef
from dpo_core.contract.results import RESULT_FILE
from dpo_core.contract.store import write_json
from tasks.launch.run_job import in_store
from tasks.report.benchmarks import benchmarks_section
from tasks.report.compare import compare_page
from tasks.report.html import render_html
from tasks.report.page import report_page
from tasks.run.files import read_run_files
from tasks.run.folder import RUN_FILE, RunRecord
from tests.tasks.made_scores import benchmarks, task_scores
from tests.tasks.report.made_run import make_run
from tests.tasks.report.test_compare import rows_of


def with_scores(store: Path, right: dict[str, tuple[int, int]], limit: int | None = 100) -> Path:
    """A finished run that was scored: its own file, and the trained checkpoint's result among its steps."""
    folder = make_run(store)
    both = benchmarks(**right).model_copy(update={"limit": limit})
    write_json(folder / BENCHMARKS_FILE, both)
    checkpoint = CheckpointRef(
        path=store / "x", fingerprint=str(right), tokenizer_fingerprint="t", source="x"
    )
    job = in_store(BenchmarkJob(checkpoint=checkpoint, tasks=tuple(right), cache_dir=store / "c"), store)
    job.write()
    scores = tuple(task_scores(task, after) for task, (_, after) in right.items())
    result = BenchmarkResult(job_fingerprint=job.fingerprint, scores=scores, tasks_computed=1, samples=store)
    write_json(job.out_dir / RESULT_FILE, result)
    record = RunRecord.model_validate_json((folder / RUN_FILE).read_bytes())
    record.outputs["benchmark"] = str(job.out_dir)
    write_json(folder / RUN_FILE, record)
    return folder


def test_the_report_shows_each_score_with_its_error_and_the_change_with_the_paired_one(tmp_path):
    run = read_run_files(with_scores(tmp_path, {"gsm8k": (60, 40), "ifeval": (50, 51)}))
    rows = rows_of(report_page(run), "benchmarks")
    assert set(rows) == {"gsm8k", "ifeval"}
    section = benchmarks_section(run)
    table = section.blocks[1]
    first, second = table.rows[0], table.rows[1]
    # 20 of 100 documents change: the mean of their differences is -0.2, their standard deviation 0.4020.
    assert first == (
        "gsm8k",
        "exact_match (strict-match)",
        "100",
        "0.6000 ± 0.0500",
        "0.4000 ± 0.0500",
        "-0.2000 ± 0.0402",
        "< 0.001",
    )
    assert second[1:] == ("perplexity", "100", "12.5000", "12.5000", "+0.0000", "")
    assert table.tones == ("bad", "", "", "")
    assert "Only the first 100 documents" in section.blocks[0].text
    assert "0.4000 ± 0.0500" in render_html(report_page(run))


def test_tasks_of_a_group_are_folded_away(tmp_path):
    folder = make_run(tmp_path)
    scores = (task_scores("mmlu", 5), task_scores("mmlu_anatomy", 5, part_of="mmlu"))
    write_json(folder / BENCHMARKS_FILE, Benchmarks(lm_eval="0.4.13", scores=compared(scores, scores)))
    _, asked, inner = benchmarks_section(read_run_files(folder)).blocks
    assert {row[0] for row in asked.rows} == {"mmlu"}
    assert {row[0] for row in inner.blocks[0].rows} == {"mmlu_anatomy"}


def test_a_run_without_benchmarks_has_no_such_section(tmp_path):
    run = read_run_files(make_run(tmp_path))
    assert (run.benchmarks, run.trained_scores, benchmarks_section(run)) == (None, None, None)


@pytest.mark.parametrize("limit", [100, None])
def test_trained_checkpoints_are_compared_by_the_same_documents(tmp_path, limit):
    one = with_scores(tmp_path / "one", {"gsm8k": (60, 40)})
    other = with_scores(tmp_path / "other", {"gsm8k": (60, 70)}, limit)
    page = compare_page([read_run_files(folder) for folder in (one, other)])
    (section,) = [section for section in page.sections if section.anchor == "benchmarks"]
    first = section.blocks[1].rows[0]
    assert first == (
        "gsm8k",
        "exact_match (strict-match)",
        "0.6000 → 0.4000 ± 0.0500",
        "0.6000 → 0.7000 ± 0.0500",
    )
    if limit is None:  # asked otherwise: not one beside the other
        assert len(section.blocks) == 2
    else:
        assert section.blocks[3].rows[0][2:] == ("+0.3000 ± 0.0461", "< 0.001")


def test_runs_without_benchmarks_are_compared_without_them(tmp_path):
    page = compare_page([read_run_files(make_run(tmp_path / name)) for name in ("a", "b")])
    assert "benchmarks" not in {section.anchor for section in page.sections}
