"""What a terminal shows at a run's end, and whether the tasks of a finished run are still what they were."""

from pathlib import Path

from rich.console import Console

from dpo_core.contract.benchmark_job import BenchmarkJob, TaskFolder
from dpo_core.contract.benchmarks import BENCHMARKS_FILE, content_of_folder
from dpo_core.contract.jobs import TrainResult
from dpo_core.contract.refs import CheckpointRef
from dpo_core.contract.results import RESULT_FILE
from dpo_core.contract.store import write_json
from flows.terminal.finished_run import tasks_are_still
from flows.terminal.plan import plan_stage
from flows.terminal.run_here import show_scores, show_verdict
from tests.tasks.made_scores import benchmarks
from tests.tasks.report.made_run import config_of, make_run
from tests.tasks.report.test_verdict import best_of

CHECKPOINT = CheckpointRef(path="/c", fingerprint="f", tokenizer_fingerprint="t", source="c")


def test_a_run_ends_with_its_scores(tmp_path: Path):
    folder = make_run(tmp_path)
    console = Console(width=140, record=True)
    show_scores(console, folder)
    assert console.export_text() == ""
    write_json(folder / BENCHMARKS_FILE, benchmarks(gsm8k=(60, 40)))
    show_scores(console, folder)
    assert "-0.2000 ± 0.0402" in console.export_text()


def test_a_run_whose_best_checkpoint_was_chosen_ends_with_its_step(tmp_path: Path):
    folder = make_run(tmp_path)
    console = Console(width=140, record=True)
    show_verdict(console, folder)
    assert "Exported are" not in console.export_text()
    (result,) = tmp_path.glob(f"train/*/{RESULT_FILE}")
    trained = TrainResult.model_validate_json(result.read_text())
    write_json(result, trained.model_copy(update={"best": best_of(8)}))
    show_verdict(console, folder)
    assert "Exported are the weights of step 3, the best of 8 evaluations" in console.export_text()


def test_a_folder_of_tasks_that_has_changed_is_another_run(tmp_path: Path):
    (tmp_path / "task.yaml").write_text("task: a")
    folder = TaskFolder(path=tmp_path, content=content_of_folder(tmp_path))
    jobs = [BenchmarkJob(checkpoint=CHECKPOINT, tasks=("a",), folders=(folder,), cache_dir="/s")]
    assert tasks_are_still(jobs)
    (tmp_path / "task.yaml").write_text("task: b")
    assert not tasks_are_still(jobs)
    moved = folder.model_copy(update={"path": tmp_path / "none"})
    assert not tasks_are_still([jobs[0].model_copy(update={"folders": (moved,)})])


def test_a_plan_says_what_is_asked_and_what_the_gate_wants(tmp_path: Path):
    rule = {"gsm8k": {"not_below_sft_by": 0.01, "at_least": 0.3}}
    config = config_of(tmp_path, benchmarks={"tasks": ["gsm8k"], "limit": 50}, gate={"benchmarks": rule})
    steps = dict(plan_stage(config).steps)
    assert steps["benchmark"].startswith("gsm8k of the SFT checkpoint")
    assert "the first 50 documents" in steps["benchmark"]
    assert steps["gate"] == "gsm8k not below SFT by 0.01 and at least 0.3"
