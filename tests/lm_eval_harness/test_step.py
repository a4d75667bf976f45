"""The step ``benchmark``: the library's own command line gives the same scores, and what is done is not done again."""

import json

import pytest

from dpo_core.contract.benchmark_job import BenchmarkResult
from dpo_core.contract.benchmarks import compared, mean_of
from dpo_core.contract.errors import ConfigError, DataError
from dpo_core.contract.refs import CheckpointRef
from tests.benchmark_jobs import EXAMPLES, TASKS, benchmark_job, folder_of, write_tasks
from tests.lm_eval_harness.command_line import assert_same_scores, by_command_line
from tests.programs.held_files import HELD_AT
from tests.step_process import kill_when, run_ranks, start
from tests.tiny_models import make_model
from tests.tiny_stage import checkpoint_ref, run_here


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> tuple[CheckpointRef, CheckpointRef]:
    """Two models that answer differently: before and after."""
    root = tmp_path_factory.mktemp("models")
    return tuple(checkpoint_ref(make_model(root / f"model{seed}", seed=seed)) for seed in (0, 3))


@pytest.fixture(scope="module")
def result(checkpoints, tmp_path_factory) -> BenchmarkResult:
    return run_here(benchmark_job(tmp_path_factory.mktemp("benchmark") / "run", checkpoints[0]))


@pytest.mark.integration
def test_scores_are_those_of_the_library_s_own_command_line_to_the_digit(checkpoints, result, tmp_path):
    assert [scores.task for scores in result.scores] == list(TASKS)
    assert_same_scores(result.scores, by_command_line(checkpoints[0], tmp_path))


def test_a_score_is_the_mean_of_what_its_documents_give(result):
    for scores in result.scores:
        assert len(scores.documents) == len(set(scores.documents)) == 5
        for metric in scores.metrics:
            assert metric.better == 1
            assert mean_of(metric.parts) == metric.value
    assert {metric.name for scores in result.scores for metric in scores.metrics} == {
        "instructions_kept,none",
        "acc,none",
        "acc_norm,none",
    }


def test_what_was_asked_and_answered_can_be_read(result):
    lines = (result.samples / "quickstart_instructions.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    assert [sample["doc"]["prompt"] for sample in samples] == [
        json.loads(line)["prompt"] for line in (EXAMPLES / "instructions.jsonl").read_text().splitlines()[:5]
    ]
    asked = samples[0]["arguments"][0][0]
    assert asked.startswith("<|im_start|>user\nWhy is history important?")
    assert asked.endswith("<|im_start|>assistant\n")
    assert set(result.samples_files) == {f"{task}.jsonl" for task in TASKS}


def test_a_task_that_is_kept_is_not_run_again(checkpoints, tmp_path):
    (first, second), folder = checkpoints, folder_of(write_tasks(tmp_path / "tasks", ("one", "two")))
    common = {"folders": (folder,), "limit": None, "cache_dir": tmp_path / "scores"}
    alone = run_here(benchmark_job(tmp_path / "a", first, tasks=("one",), **common))
    both = run_here(benchmark_job(tmp_path / "b", first, tasks=("two", "one"), **common))
    assert (alone.tasks_computed, both.tasks_computed) == (1, 1)
    assert both.scores[1] == alone.scores[0]
    assert run_here(benchmark_job(tmp_path / "c", second, tasks=("one",), **common)).tasks_computed == 1
    other = {"num_fewshot": 1}, {"limit": 2}, {"chat_template": False}
    for number, change in enumerate(other):
        job = benchmark_job(tmp_path / f"d{number}", first, **{"tasks": ("one",), **common, **change})
        again = run_here(job.at(tmp_path / f"e{number}"))
        assert (run_here(job).tasks_computed, again.tasks_computed) == (0, 1)
        assert len(again.scores[0].documents) == change.get("limit", 6)


def test_other_documents_are_another_score(checkpoints, tmp_path):
    folder = write_tasks(tmp_path / "tasks", ("one",))
    run_here(benchmark_job(tmp_path / "a", checkpoints[0], tasks=("one",), folders=(folder_of(folder),)))
    with (folder / "data" / "one.jsonl").open("a") as file:
        file.write('{"text": "A list is", "choices": ["Paris", "a list", "the sea"], "label": 1}\n')
    job = benchmark_job(
        tmp_path / "b", checkpoints[0], tasks=("one",), folders=(folder_of(folder),), limit=None
    )
    result = run_here(job)
    assert result.tasks_computed == 1
    assert len(result.scores[0].documents) == 7
    (folder / "one.yaml").write_text((folder / "one.yaml").read_text().replace("2.5", "2.6"))
    with pytest.raises(DataError, match="has changed since this run began"):
        run_here(job.at(tmp_path / "c"))


def test_a_group_s_score_is_that_of_its_tasks_documents(checkpoints, tmp_path):
    folder = folder_of(write_tasks(tmp_path / "tasks", ("one", "two")))
    job = benchmark_job(tmp_path / "a", checkpoints[0], tasks=("all_of_them",), folders=(folder,), limit=None)
    before = run_here(job).scores
    after = run_here(job.model_copy(update={"checkpoint": checkpoints[1]}).at(tmp_path / "b")).scores
    assert [(scores.task, scores.part_of, len(scores.documents)) for scores in before] == [
        ("all_of_them", None, 13),
        ("one", "all_of_them", 6),
        ("two", "all_of_them", 7),
    ]
    whole = compared(before, after)[0]
    assert whole.metric == "acc,none"
    assert whole.before == pytest.approx(mean_of(before[0].metrics[0].parts))
    assert whole.paired_stderr is not None


def test_what_cannot_be_asked_is_said_before_a_model_is_loaded(tmp_path):
    nothing = CheckpointRef(path=tmp_path / "none", fingerprint="a", tokenizer_fingerprint="b", source="none")
    folder = write_tasks(tmp_path / "tasks", ("one",))
    with pytest.raises(ConfigError, match=r"quickstart_instruction, which is no task .* Near it: .+"):
        run_here(benchmark_job(tmp_path / "a", nothing, tasks=("quickstart_instruction",)))
    (folder / "data" / "one.jsonl").unlink()
    with pytest.raises(DataError, match="task one could not be loaded with its data"):
        run_here(benchmark_job(tmp_path / "b", nothing, tasks=("one",), folders=(folder_of(folder),)))
    unsafe = (folder / "one.yaml").read_text().replace("tag:", "unsafe_code: true\ntag:")
    (folder / "one.yaml").write_text(unsafe)
    (folder / "data" / "one.jsonl").write_text('{"text": "a", "choices": ["b", "c"], "label": 1}\n')
    with pytest.raises(ConfigError, match="runs code that the model writes"):
        run_here(benchmark_job(tmp_path / "c", nothing, tasks=("one",), folders=(folder_of(folder),)))


def test_another_version_of_the_library_is_refused(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr("dpo_core.benchmarks.asked_tasks.LM_EVAL_VERSION", "0.4.99")
    with pytest.raises(ConfigError, match=r"lm-eval 0\.4\.99, and 0\.4\.13 is installed"):
        run_here(benchmark_job(tmp_path / "run", checkpoints[0]))


@pytest.mark.integration
def test_killed_between_two_tasks_it_goes_on_at_the_second(checkpoints, result, tmp_path, monkeypatch):
    monkeypatch.setenv(HELD_AT, "/scores.json:2")
    cache = tmp_path / "benchmark-scores"
    job = benchmark_job(tmp_path / "run", checkpoints[0])
    kill_when(start(job, module="tests.programs.held_files"), lambda: any(cache.glob("[!.]*/scores.json")))
    (kept,) = cache.glob("[!.]*/scores.json")
    written = kept.stat().st_mtime_ns
    resumed = run_ranks(job, 1, module="dpo_core")
    assert resumed.tasks_computed == 1
    assert kept.stat().st_mtime_ns == written
    assert resumed.scores == result.scores


@pytest.mark.integration
def test_two_processes_score_what_one_does(checkpoints, result, tmp_path):
    together = run_ranks(benchmark_job(tmp_path / "run", checkpoints[0]), 2, module="dpo_core")
    assert [scores.documents for scores in together.scores] == [scores.documents for scores in result.scores]
    for ours, theirs in zip(together.scores, result.scores, strict=True):
        for metric, alone in zip(ours.metrics, theirs.metrics, strict=True):
            assert metric.parts == alone.parts
            assert metric.value == pytest.approx(alone.value, rel=1e-12)
