"""Runs with ``train.float8`` on a CPU, their weights shared out by FSDP2, among one process, too: reference values of their
own, a zero margin at step 0, the same bits resumed, two processes as one."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from dpo_core.contract.errors import ReferenceMismatch
from dpo_core.contract.jobs import ReferenceResult, TrainJob, TrainResult
from dpo_core.contract.loss_config import LossConfig
from dpo_core.contract.results import read_error
from tests.dpo_core.engine.test_sharded import BACK_ENDS
from tests.step_process import metrics_of, run_ranks, start_ranks
from tests.tiny_stage import TinyStage, reference_job
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.integration

HOW = {"precision": "bf16", "implementation": "olmo_core", "sharding": BACK_ENDS["fsdp2"]}
STEPS, LEARNING_RATE = 3, 1e-4


def reference_of(stage: TinyStage, folder: Path, float8: str) -> ReferenceResult:
    """In one cache for all recipes."""
    job = reference_job(
        folder / f"reference {float8}",
        stage.data,
        stage.checkpoint,
        cache_dir=folder / "cache",
        float8=float8,
        **HOW,
    )
    return run_ranks(job, 1)


@pytest.fixture(scope="module")
def references(stage, tmp_path_factory) -> dict[str, ReferenceResult]:
    folder = tmp_path_factory.mktemp("references")
    return {float8: reference_of(stage, folder, float8) for float8 in ("none", "rowwise")}


def job_of(stage: TinyStage, reference: ReferenceResult, folder: Path, processes: int = 1) -> TrainJob:
    """Three steps of four pairs, a checkpoint after each."""
    return stage.train_job(
        folder,
        LossConfig(name="dpo", beta=0.5),
        per_device=4 // processes,
        processes=processes,
        learning_rate=LEARNING_RATE,
        reference=reference.reference,
        max_steps=STEPS,
        checkpoint_every=1,
        keep_checkpoints=9,
        float8="rowwise",
        **HOW,
    )


@pytest.fixture(scope="module")
def alone(stage, references, tmp_path_factory) -> TrainResult:
    return run_ranks(job_of(stage, references["rowwise"], tmp_path_factory.mktemp("alone")), 1)


def test_reference_values_are_its_own_and_the_margin_of_step_0_is_zero(references, alone):
    """Those of bf16 are not taken from the cache; its own are, to the last bit of what a microbatch's shape changes."""
    assert [result.rows_computed for result in references.values()] == [40, 40]
    assert alone.forward == "packed"
    assert alone.guard["largest_difference_per_token"] < 1e-2
    assert alone.first_metrics["loss"] == pytest.approx(np.log(2), abs=1e-2)
    losses = [step["loss"] for step in metrics_of(alone.metrics_path.parent)]
    assert len(losses) == STEPS and np.isfinite(losses).all()  # noqa: PT018


def test_reference_values_of_bf16_are_told_from_its_own(stage, references, tmp_path):
    """They cannot come from the cache, whose key they do not have; the guard would see them all the same."""
    job = job_of(stage, references["none"], tmp_path)
    assert start_ranks(job, 1).wait(PATIENCE_SECONDS) != 0
    error = read_error(job)
    assert (error.kind, "(allowed 0.1)" in error.message) == (ReferenceMismatch.kind, True)


def test_gone_on_from_a_checkpoint_it_gives_the_same_bits(stage, references, alone, tmp_path):
    begun = alone.weights_path.parent
    job = job_of(stage, references["rowwise"], tmp_path)
    assert job.fingerprint == alone.job_fingerprint
    shutil.copytree(begun / "checkpoints" / "step-00000001", tmp_path / "checkpoints" / "step-00000001")
    shutil.copyfile(alone.metrics_path, tmp_path / alone.metrics_path.name)
    result = run_ranks(job, 1)
    assert result.resumed_from_step == 1
    assert result.weights_sha256 == alone.weights_sha256
    assert [step["loss"] for step in metrics_of(tmp_path)] == [step["loss"] for step in metrics_of(begun)]


def test_two_processes_that_share_weights_out_train_what_one_does(stage, references, alone, tmp_path):
    """Parts are those of the checkpoint's tensors: nothing is gathered in float8. Of gradients that are tiny AdamW's first
    steps may go either way."""
    job = job_of(stage, references["rowwise"], tmp_path, 2)
    assert job.fingerprint == alone.job_fingerprint
    result = run_ranks(job)
    assert result.guard["largest_difference_per_token"] < 1e-2
    ours, theirs = (load_file(run.weights_path / "model.safetensors") for run in (result, alone))
    start = load_file(Path(stage.checkpoint.path) / "model.safetensors")
    assert ours.keys() == theirs.keys() == start.keys()
    assert {tensor.dtype for tensor in ours.values()} == {tensor.dtype for tensor in start.values()}
    for name, tensor in ours.items():
        assert (tensor - theirs[name]).abs().max() <= 2 * STEPS * LEARNING_RATE, name
    ours, theirs = ([step["loss"] for step in metrics_of(run.metrics_path.parent)] for run in (result, alone))
    assert ours == pytest.approx(theirs, abs=1e-2)


def test_an_evaluation_computes_as_the_training_did(stage, references, tmp_path):
    """So the margins of the start itself are zero, and answers come from the same products."""
    job = stage.evaluate_job(tmp_path, stage.checkpoint, num_prompts=2, max_new_tokens=4)
    update = {**HOW, "float8": "rowwise", "reference": references["rowwise"].reference}
    result = run_ranks(job.model_copy(update=update).at(tmp_path), 1)
    assert result.before["rewards/margins"] == pytest.approx(0, abs=1e-2)
    assert result.before == result.after
    assert len(result.answers) == 2
