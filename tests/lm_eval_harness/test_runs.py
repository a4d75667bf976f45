"""Whole runs with benchmarks: scored before and after, judged by the gate, handed on; a sweep's start is scored once."""

import json
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from dpo_core.contract.benchmark_job import BenchmarkResult
from dpo_core.contract.benchmarks import BENCHMARKS_FILE, Benchmarks, compared
from dpo_core.contract.errors import ConfigError, DataError, GateFailed
from dpo_core.contract.results import RESULT_FILE
from flows.dpo_stage import dpo_stage
from flows.dpo_sweep import dpo_sweep
from tasks.run.files import read_run_files
from tasks.run.folder import read_run, read_runs
from tests.benchmark_jobs import write_tasks
from tests.flows.conftest import last_run, tiny_config
from tests.flows.test_dpo_sweep import LIMIT, sweep_config
from tests.tiny_stage import write_inputs

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]
TASKS = ["one", "two"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    write_tasks(folder / "tasks", ("one", "two"))
    return folder


def asked(inputs: Path, tasks: list[str]) -> dict:
    return {"tasks": tasks, "task_folders": [str(inputs / "tasks")]}


def results_in(store: Path) -> list[BenchmarkResult]:
    return [
        BenchmarkResult.model_validate_json(path.read_bytes())
        for path in store.glob(f"benchmark/*/{RESULT_FILE}")
    ]


def results_of(folder: Path, name: str) -> BenchmarkResult:
    """What the output ``name`` of the run in ``folder`` holds."""
    return BenchmarkResult.model_validate_json(
        (Path(read_run(folder).outputs[name]) / RESULT_FILE).read_bytes()
    )


def test_a_run_is_scored_before_and_after_and_judged_by_it(inputs, tmp_path):
    def config(bound: float):
        return tiny_config(
            inputs,
            tmp_path,
            benchmarks=asked(inputs, ["all_of_them"]),
            gate={"benchmarks": {"all_of_them": {"not_below_sft_by": bound}}},
        )

    handoff = dpo_stage(config(1.0))
    folder, record = last_run(tmp_path)
    names = [step.name for step in record.tasks]
    assert (
        names.index("benchmark of SFT")
        < names.index("train")
        < names.index("evaluate")
        < names.index("benchmark")
    )
    scores = Benchmarks.model_validate_json((folder / BENCHMARKS_FILE).read_bytes())
    before, after = (results_of(folder, name) for name in ("benchmark_sft", "benchmark"))
    assert scores.scores == compared(before.scores, after.scores)
    assert [(score.task, score.part_of) for score in scores.scores if score.is_main] == [
        ("all_of_them", None),
        ("one", "all_of_them"),
        ("two", "all_of_them"),
    ]
    assert handoff.benchmarks == scores
    (main,) = scores.main
    assert handoff.metrics_before["benchmarks/all_of_them"] == main.before
    assert handoff.metrics_after["benchmarks/all_of_them"] == main.after
    (check,) = handoff.release.checks
    assert (check.passed, check.value) == (True, pytest.approx(main.change))
    assert "lm-evaluation-harness" in (folder / "report.html").read_text()
    assert "## Benchmarks" in (Path(handoff.checkpoint.directory) / "README.md").read_text()
    impossible = config(1.0).model_copy(
        update={"gate": config(0).gate.model_validate({"benchmarks": {"all_of_them": {"at_least": 2.0}}})}
    )
    with pytest.raises(GateFailed, match="all_of_them acc at least 2: got"):
        dpo_stage(impossible)
    assert len(results_in(tmp_path)) == 2


def test_a_sweep_scores_what_it_starts_from_once_and_may_be_judged_by_a_task(inputs, tmp_path):
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(LIMIT, 2)
    grid = {"beta": [0.1, 0.5], "metric": "benchmarks/one"}
    handoff = dpo_sweep(sweep_config(inputs, tmp_path, grid, benchmarks=asked(inputs, TASKS)))
    assert sorted(result.tasks_computed for result in results_in(tmp_path)) == [2, 2, 2]
    members = [record for _, record in read_runs(tmp_path) if record.name != "grid"]
    assert len({record.outputs["benchmark_sft"] for record in members}) == 1
    (sweep,) = [folder for folder, record in read_runs(tmp_path) if record.name == "grid"]
    outcome = json.loads((sweep / "sweep.json").read_text())
    best = max(member["after"]["benchmarks/one"] for member in outcome["members"])
    assert_errors_and_lead(outcome, tmp_path)
    assert outcome["metric"] == "benchmarks/one"
    assert handoff.metrics_after["benchmarks/one"] == best
    assert Benchmarks.model_validate_json((sweep / BENCHMARKS_FILE).read_bytes()) == handoff.benchmarks
    winner = tmp_path / "runs" / outcome["members"][outcome["winner"] - 1]["run"]
    scored = read_run_files(sweep).trained_scores
    assert scored == results_of(winner, "benchmark")  # what `pairline compare` sets beside another run's


def assert_errors_and_lead(outcome: dict, store: Path) -> None:
    """Each member's errors are those in its own run's folder; the lead is that of the two members' documents."""
    results = {}
    for member in outcome["members"]:
        folder = store / "runs" / member["run"]
        scores = Benchmarks.model_validate_json((folder / BENCHMARKS_FILE).read_bytes())
        assert member["errors"] == {f"benchmarks/{one.task}": one.after_stderr for one in scores.main}
        results[member["number"]] = results_of(folder, "benchmark").scores
    assert {outcome["winner"], outcome["second"]} == set(results)
    beside = compared(results[outcome["second"]], results[outcome["winner"]])
    assert outcome["leads"] == [
        {"metric": f"benchmarks/{one.task}", "value": one.change, "stderr": one.paired_stderr}
        for one in beside
        if one.is_main
    ]


def test_data_that_is_not_there_ends_a_run_before_it_trains(inputs, tmp_path):
    folder = write_tasks(tmp_path / "tasks", ("one",))
    (folder / "data" / "one.jsonl").unlink()
    benchmarks = {"tasks": ["one"], "task_folders": [str(folder)]}
    with pytest.raises(DataError, match="task one could not be loaded with its data"):
        dpo_stage(tiny_config(inputs, tmp_path, benchmarks=benchmarks))
    assert "train" not in [step.name for step in last_run(tmp_path)[1].tasks]


def test_an_interpreter_without_the_library_is_refused_at_once(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("flows.benchmark_software.LM_EVAL_VERSION", "0.4.99")
    with pytest.raises(ConfigError, match=r"has no lm-eval 0\.4\.99 \(found: 0\.4\.13\)"):
        dpo_stage(tiny_config(inputs, tmp_path, benchmarks=asked(inputs, TASKS)))
    assert read_runs(tmp_path) == []
