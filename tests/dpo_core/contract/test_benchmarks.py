"""Scores before and after beside each other: differences, their paired errors, and what names a folder of tasks."""

import math
import statistics
from pathlib import Path

import pytest
from pydantic import ValidationError

from dpo_core.contract.benchmark_config import BenchmarkConfig
from dpo_core.contract.benchmark_job import BenchmarkJob, TaskFolder
from dpo_core.contract.benchmarks import (
    Benchmarks,
    MetricScore,
    TaskScores,
    compared,
    content_of_folder,
    mean_of,
    paired_chance,
    paired_stderr,
)
from dpo_core.contract.outcome import student
from dpo_core.contract.refs import CheckpointRef

ONES = ((1.0, 1.0), (0.0, 1.0), (1.0, 1.0), (0.0, 1.0))
OTHERS = ((1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (0.0, 1.0))


def scores(
    task: str, parts: tuple, part_of: str | None = None, better: int = 1, name: str = "acc,none"
) -> TaskScores:
    metric = MetricScore(name=name, value=mean_of(parts), stderr=0.25, better=better, parts=parts)
    second = metric.model_copy(update={"name": "acc_norm,none", "value": 0.5, "parts": ()})
    documents = tuple(f"document {number}" for number in range(len(parts)))
    return TaskScores(task=task, part_of=part_of, documents=documents, metrics=(metric, second))


def test_the_paired_error_is_that_of_the_documents_differences():
    """One of four changes: differences 0, 1, 0, 0 have the mean 1/4 and the standard deviation 1/2."""
    assert paired_stderr(ONES, OTHERS) == pytest.approx(0.25)
    assert paired_stderr(ONES, OTHERS) == pytest.approx(statistics.stdev([0, 1, 0, 0]) / math.sqrt(4))
    assert paired_stderr(ONES, ONES) == 0


def test_documents_of_several_items_count_by_their_items():
    """Items of one document are no more independent than its score is: with twice the items of each nothing is known
    better."""
    before = ((1.0, 2.0), (3.0, 3.0), (0.0, 1.0))
    after = ((2.0, 2.0), (2.0, 3.0), (1.0, 1.0))
    change = 1 / 6  # 5 of 6, 4 of 6
    squares = (1 - 2 * change) ** 2 + (-1 - 3 * change) ** 2 + (1 - change) ** 2
    assert paired_stderr(before, after) == pytest.approx(math.sqrt(3 / 2 * squares) / 6)
    twice = [tuple((2 * total, 2 * count) for total, count in parts) for parts in (before, after)]
    assert paired_stderr(*twice) == pytest.approx(paired_stderr(before, after))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((), ()),
        (ONES[:1], ONES[:1]),
        (ONES, ONES[:3]),
        (ONES, ((1.0, 2.0), *ONES[1:])),
        (((0.0, 0.0),) * 3,) * 2,
    ],
)
def test_without_the_same_documents_there_is_no_paired_error(before, after):
    assert paired_stderr(before, after) is None


def one_each(*values: float) -> tuple:
    return tuple((value, 1.0) for value in values)


def test_few_documents_that_change_are_no_proof_however_small_their_error():
    """Three of four that turn right are three standard errors, and one that all turn have none."""
    assert paired_chance(one_each(0, 0, 0, 0), one_each(1, 1, 1, 0)) == 2 / 8
    assert paired_chance(one_each(0, 0, 0, 0), one_each(1, 1, 1, 1)) == 2 / 16
    assert (
        paired_chance(one_each(*[1] * 8), one_each(*[0] * 8)) == 2 / 256
    )  # before, no error meant no change
    assert paired_chance(one_each(0, 1, 0, 1), one_each(0, 1, 0, 1)) == 1
    assert paired_chance(one_each(0.0, 0.0), one_each(1.0)) is None


def test_documents_that_are_more_or_less_right_are_compared_by_their_mean():
    """F1 and the like: Student's t of the differences, three degrees of freedom."""
    before, after = one_each(0.2, 0.4, 0.1, 0.7, 0.5), one_each(0.5, 0.4, 0.6, 0.8, 0.7)
    differences = [0.3, 0.0, 0.5, 0.1, 0.2]
    t = statistics.mean(differences) / (statistics.stdev(differences) / math.sqrt(5))
    assert paired_chance(before, after) == pytest.approx(max(student(t, 4), 2 / 16))
    many = paired_chance(before * 20, after * 20)
    assert many < 0.001


def test_scores_stand_beside_each_other_metric_by_metric():
    rows = compared(
        (scores("a", ONES), scores("b", ONES, part_of="a")), (scores("a", OTHERS), scores("b", OTHERS, "a"))
    )
    assert [(row.task, row.metric, row.is_main, row.part_of) for row in rows] == [
        ("a", "acc,none", True, None),
        ("a", "acc_norm,none", False, None),
        ("b", "acc,none", True, "a"),
        ("b", "acc_norm,none", False, "a"),
    ]
    first, second = rows[:2]
    assert (first.before, first.after, first.change, first.num_documents) == (0.5, 0.75, 0.25, 4)
    assert (first.before_stderr, first.paired_stderr, second.paired_stderr) == (
        0.25,
        pytest.approx(0.25),
        None,
    )
    both = Benchmarks(lm_eval="0.4.13", scores=rows)
    assert both.main == (first,)
    assert (both.metrics("before"), both.metrics("after")) == ({"benchmarks/a": 0.5}, {"benchmarks/a": 0.75})
    assert both.find("b", "acc_norm,none") == rows[3]
    assert both.find("c") is None


def test_other_documents_are_compared_without_a_paired_error():
    other = scores("a", OTHERS).model_copy(update={"documents": ("another", *"bcd")})
    assert compared((scores("a", ONES),), (other,))[0].paired_stderr is None
    assert compared((scores("a", ONES),), ()) == ()


def test_what_can_be_told_is_told_by_the_main_metrics():
    def outcomes(better: int) -> tuple:
        rows = compared((scores("a", ONES * 30, better=better),), (scores("a", OTHERS * 30, better=better),))
        return Benchmarks(lm_eval="0.4.13", scores=rows).outcomes

    (outcome,) = outcomes(1)
    assert (outcome.label, outcome.before, outcome.after) == ("a acc", 0.5, 0.75)
    assert outcome.rose(0.001)
    assert outcome.chance == 2 / 2**30  # of the 30 documents that changed
    (old,) = Benchmarks(
        lm_eval="0.4.13", scores=compared((scores("a", ONES * 30),), (scores("a", OTHERS * 30),))[:1]
    ).scores
    assert old.model_copy(update={"chance": None}).outcome.rose(0.001)  # as an earlier version wrote it
    assert outcomes(0) == outcomes(-1) == ()


def test_a_metric_is_called_with_its_filter():
    (row, _) = compared(
        (scores("gsm8k", ONES, name="exact_match,strict-match"),) * 1,
        (scores("gsm8k", ONES, name="exact_match,strict-match"),),
    )
    assert row.label == "gsm8k exact_match (strict-match)"


def test_a_folder_s_content_is_its_files_and_their_names(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "task.yaml").write_text("task: a\n")
    (tmp_path / "data" / "a.jsonl").write_text("{}\n")
    content = content_of_folder(tmp_path)
    for left in ("__pycache__/checks.pyc", ".git/HEAD", "data/.a.swp"):
        (tmp_path / left).parent.mkdir(exist_ok=True)
        (tmp_path / left).write_text("x")
    assert content_of_folder(tmp_path) == content
    (tmp_path / "data" / "a.jsonl").rename(tmp_path / "data" / "b.jsonl")
    assert content_of_folder(tmp_path) != content


def test_what_changes_a_score_changes_the_job_and_what_does_not_does_not():
    checkpoint = CheckpointRef(path="/a", fingerprint="f", tokenizer_fingerprint="t", source="a")
    job = BenchmarkJob(
        checkpoint=checkpoint, tasks=("a",), cache_dir="/c", folders=(TaskFolder(path="/f", content="1"),)
    )
    same = {"batch_size": 4, "cache_dir": Path("/d"), "folders": (TaskFolder(path="/g", content="1"),)}
    assert all(
        job.model_copy(update={name: value}).fingerprint == job.fingerprint for name, value in same.items()
    )
    other = {
        "tasks": ("b",),
        "limit": 3,
        "num_fewshot": 0,
        "chat_template": False,
        "template": "tulu",
        "max_length_tokens": 512,
        "folders": (TaskFolder(path="/f", content="2"),),
        "checkpoint": checkpoint.model_copy(update={"tokenizer_fingerprint": "u"}),
    }
    changed = {job.model_copy(update={name: value}).fingerprint for name, value in other.items()}
    assert len(changed | {job.fingerprint}) == len(other) + 1
    assert job.model_copy(update={"tasks": ("b",)}).score_content == job.score_content
    assert job.score_content["lm_eval"] == "0.4.13"


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"tasks": ["a", "a"]}, "names a task twice"),
        ({"task_folders": ["x"]}, "benchmarks.tasks is empty"),
        ({"tasks": ["../a"]}, "String should match pattern"),
    ],
)
def test_a_section_that_means_nothing_is_refused(section, words):
    with pytest.raises(ValidationError, match=words):
        BenchmarkConfig.model_validate(section)
