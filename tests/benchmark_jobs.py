"""Jobs of the step ``benchmark`` on tasks of the examples and on small ones that tests write."""

from pathlib import Path

from dpo_core.contract.benchmark_job import BenchmarkJob, TaskFolder
from dpo_core.contract.benchmarks import content_of_folder
from dpo_core.contract.refs import CheckpointRef
from tests.warm.started import ROOT

EXAMPLES = ROOT / "examples" / "benchmarks"
TASKS = ("quickstart_instructions", "zen_of_python")
CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: data/{name}.jsonl, train: data/{name}.jsonl}}}}
test_split: test
training_split: train
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: choices
doc_to_target: label
tag: {tag}
metadata: {{version: 2.5}}
"""
ROWS = '{{"text": "The capital of {0} is", "choices": ["Paris", "a list", "the sea"], "label": {1}}}\n'


def folder_of(path: Path) -> TaskFolder:
    """A folder as a run pins it."""
    return TaskFolder(path=path, content=content_of_folder(path))


def benchmark_job(out_dir: Path, checkpoint: CheckpointRef, **fields: object) -> BenchmarkJob:
    """The examples' tasks on their first documents; the cache lies beside ``out_dir`` unless given."""
    return BenchmarkJob(
        **{
            "checkpoint": checkpoint,
            "tasks": TASKS,
            "folders": (folder_of(EXAMPLES),),
            "limit": 5,
            "max_length_tokens": 512,
            "cache_dir": out_dir.parent / "benchmark-scores",
        }
        | fields
    ).at(out_dir)


def write_tasks(folder: Path, names: tuple[str, ...], rows: int = 6) -> Path:
    """Multiple-choice tasks with data of their own, and the group ``all_of_them``. -> ``folder``"""
    (folder / "data").mkdir(parents=True)
    countries = ("France", "Spain", "Italy", "Ghana", "Peru", "Chile", "Nepal", "Japan")
    for start, name in enumerate(names):
        (folder / f"{name}.yaml").write_text(CHOICE.format(name=name, tag="capitals"))
        lines = [ROWS.format(countries[(start + row) % 8], row % 3) for row in range(rows + start)]
        (folder / "data" / f"{name}.jsonl").write_text("".join(lines))
    (folder / "group.yaml").write_text(
        f"group: all_of_them\ntask: [{', '.join(names)}]\n"
        "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]\n"
    )
    return folder
