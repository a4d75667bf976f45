"""The library's own command line, which scores are compared with."""

import json
import os
import subprocess
import sys
from pathlib import Path

from dpo_core.contract.benchmarks import TaskScores
from dpo_core.contract.refs import CheckpointRef
from tests.benchmark_jobs import EXAMPLES, TASKS
from tests.step_process import ONE_THREAD
from tests.waiting import PATIENCE_SECONDS

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def by_command_line(
    checkpoint: CheckpointRef,
    out_dir: Path,
    tasks: tuple[str, ...] = TASKS,
    folder: Path = EXAMPLES,
    *more: str,
    limit: int = 5,
) -> dict:
    """Return what ``python -m lm_eval`` writes of these tasks; ``more``: other options."""
    model = f"pretrained={checkpoint.path},max_length=512"
    argv = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"),
        *("--model_args", model, "--batch_size", "16", "--limit", str(limit)),
        *("--apply_chat_template", "--fewshot_as_multiturn", "--log_samples", "--output_path", str(out_dir)),
        *("--include_path", str(folder), "--tasks", ",".join(tasks), *more),
    ]
    environment = os.environ | ONE_THREAD | OFFLINE | {"PYTHONPATH": str(EXAMPLES.parents[1])}
    done = subprocess.run(
        argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = out_dir.rglob("results_*.json")
    return json.loads(file.read_text())["results"]


def assert_same_scores(ours: tuple[TaskScores, ...], theirs: dict) -> None:
    """Compare all metrics and their standard errors, to the digit."""
    for scores in ours:
        expected = theirs[scores.task]
        assert {metric.name: metric.value for metric in scores.metrics} == {
            name: value for name, value in expected.items() if "," in name and "_stderr" not in name
        }
        assert {metric.name.replace(",", "_stderr,"): metric.stderr for metric in scores.metrics} == {
            name: value for name, value in expected.items() if "_stderr," in name
        }
