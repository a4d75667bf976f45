"""A task as the library publishes it, here gsm8k: its own file, with local rows in place of the Hub's."""

import json
from pathlib import Path

import pytest
import yaml
from lm_eval import tasks

from tests.benchmark_jobs import benchmark_job, folder_of
from tests.lm_eval_harness.command_line import assert_same_scores, by_command_line
from tests.tiny_models import make_model
from tests.tiny_stage import checkpoint_ref, run_here

THEIRS = Path(tasks.__file__).parent / "gsm8k" / "gsm8k.yaml"
LOCAL = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"train": "train.jsonl", "test": "test.jsonl"}},
}


def write_rows(file: Path, answers: list[str]) -> None:
    """Made questions, each with its answer in gsm8k's form."""
    rows = [
        {
            "question": f"Anna has {n + 2} shells and finds {n}. How many has she?",
            "answer": f"So\n#### {answer}",
        }
        for n, answer in enumerate(answers)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_gsm8k(folder: Path) -> Path:
    """The library's definition by its own name, with its data here. -> ``folder``"""
    folder.mkdir()
    definition = yaml.safe_load(THEIRS.read_text())
    del definition["dataset_name"]
    (folder / "gsm8k.yaml").write_text(yaml.safe_dump(definition | LOCAL))
    write_rows(folder / "train.jsonl", ["2", "4"])
    write_rows(folder / "test.jsonl", ["8"] * 4)
    return folder


@pytest.mark.integration
def test_gsm8k_with_local_rows_has_the_command_line_s_scores_to_the_digit(tmp_path):
    """Generation, few shots and two filters; what the model says is made the answer of every second question."""
    checkpoint, folder = (
        checkpoint_ref(make_model(tmp_path / "model", seed=3)),
        write_gsm8k(tmp_path / "tasks"),
    )
    asked = {"tasks": ("gsm8k",), "limit": 4, "num_fewshot": 1}
    first = run_here(benchmark_job(tmp_path / "a", checkpoint, folders=(folder_of(folder),), **asked))
    samples = [json.loads(line) for line in (first.samples / "gsm8k.jsonl").read_text().splitlines()]
    said = [one["filtered_resps"][0] for one in samples if one["filter"] == "flexible-extract"]
    assert "Question: Anna has 3 shells and finds 1. How" in samples[0]["arguments"][0][0]  # the example
    write_rows(folder / "test.jsonl", [said[0], "70", said[2], "70"])
    ours = run_here(benchmark_job(tmp_path / "b", checkpoint, folders=(folder_of(folder),), **asked)).scores
    assert {metric.name: metric.value for metric in ours[0].metrics} == {
        "exact_match,strict-match": 0.0,
        "exact_match,flexible-extract": 0.5,
    }
    options = "--num_fewshot", "1"
    assert_same_scores(
        ours, by_command_line(checkpoint, tmp_path / "theirs", ("gsm8k",), folder, *options, limit=4)
    )
