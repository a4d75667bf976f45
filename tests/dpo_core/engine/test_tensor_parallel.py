"""Tensor parallelism as real processes over gloo: neighbours that compute together, FSDP2 over the others, replicas.

What holds of every back end (``test_sharded``) holds of it: one process's run, from parts of each matrix.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Olmo3Config, PreTrainedConfig, Qwen3Config

from dpo_core.contract.checkpoint_files import RUN_OPTIMIZER, RUN_WEIGHTS
from dpo_core.contract.errors import ConfigError
from dpo_core.contract.jobs import Sharding, TrainJob, TrainResult
from dpo_core.contract.results import read_error, read_result
from dpo_core.engine.checkpoint import newest_checkpoint
from tests.dpo_core.engine.test_sharded import (
    PLAIN,
    WEIGHT_NOISE,
    assert_near,
    assert_same_evaluation,
    assert_same_reference,
    exported_and_trained,
    job_in,
    kill_at_some_moment,
    take_history,
)
from tests.dpo_core.engine.test_sharded_in_half import assert_alike
from tests.dpo_core.training.test_resume import assert_same_run
from tests.random_moments import chance
from tests.step_process import metrics_of, run_ranks, start_ranks
from tests.tiny_models import make_model, make_tokenizer
from tests.tiny_stage import TinyStage, checkpoint_ref, make_rows, mix, reference_job, run_here
from tests.waiting import PATIENCE_SECONDS
from tests.whole_tensors import whole_tensors

pytestmark = pytest.mark.integration

TELLING = "tests.programs.ranks_that_tell_what_they_hold"
TOGETHER = Sharding(
    kind="fsdp2", tensor_degree=2
)  # on four processes: two shares of the pairs, two processes each
COPIES = Sharding(kind="fsdp2", degree=2, tensor_degree=2)  # on four: two copies of the model
MIXED = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
MODELS: dict[str, PreTrainedConfig] = {
    "norms of each head": Qwen3Config(**SIZES, head_dim=16),
    "norms over all heads, windows": Olmo3Config(**SIZES, **MIXED),
}


def shares(sharding: Sharding, processes: int) -> int:
    return processes // sharding.tensor_degree


@dataclass
class Runs:
    """18 steps of one job, by who computes them; made when first asked for."""

    stage: TinyStage
    root: Path

    def __getitem__(self, name: str) -> TrainResult:
        if name == "alone":
            job = job_in(self.stage, self.root / name, processes=1)
            return read_result(job) or run_here(job)
        job = job_in(self.stage, self.root / name, TOGETHER, processes=2)
        return read_result(job) or run_ranks(job, 4, module=TELLING)


@pytest.fixture(scope="module")
def runs(stage, tmp_path_factory) -> Runs:
    return Runs(stage, tmp_path_factory.mktemp("runs"))


def test_two_by_two_processes_give_the_weights_of_one(runs):
    """The vocabulary is odd, head and embedding are one matrix; WPO's weights take all that a head can give."""
    result, alone = runs["four"], runs["alone"]
    assert result.job_fingerprint == alone.job_fingerprint
    assert_near(result, alone)
    ours, theirs = (metrics_of(run.metrics_path.parent) for run in (result, alone))
    for name in ("pairs", "tokens/total"):  # each pair counts once
        assert [step[name] for step in ours] == [step[name] for step in theirs]
    assert (result.trained_parameters, result.all_parameters) == (
        alone.trained_parameters,
        alone.all_parameters,
    )
    assert result.guard["largest_difference_per_token"] < 1e-5
    assert result.forward == "packed"
    for rank in range(4):
        held = json.loads((runs.root / "four" / f"held-{rank}.json").read_text())
        assert held["weights"] == pytest.approx(result.all_parameters / 4, rel=0.01)
        assert held["moments"] == pytest.approx(result.all_parameters / 2, rel=0.01)


def test_killed_at_any_moment_and_resumed_it_gives_the_same_bits(stage, runs, tmp_path):
    job = job_in(stage, tmp_path / "run", TOGETHER, processes=2)
    kill_at_some_moment(job, chance(), processes=4)
    found = newest_checkpoint(job.out_dir / "checkpoints", job.fingerprint)
    result = run_ranks(job, 4)
    assert result.resumed_from_step == (found[1].step if found else None)
    assert_same_run(result, runs["four"])


@pytest.mark.parametrize(
    ("begun_with", "sharding", "processes"),
    [("four", PLAIN, 1), ("four", COPIES, 4), ("alone", TOGETHER, 2), ("four", Sharding(kind="fsdp2"), 2)],
)
def test_a_run_goes_on_with_other_degrees(stage, runs, tmp_path, begun_with, sharding, processes):
    begun = runs[begun_with]
    shutil.copytree(
        begun.weights_path.parent / "checkpoints" / "step-00000010",
        tmp_path / "checkpoints" / "step-00000010",
    )
    take_history(begun, tmp_path)
    job = job_in(stage, tmp_path, sharding, shares(sharding, processes))
    result = run_ranks(job, processes) if processes > 1 else run_here(job)
    assert result.resumed_from_step == 10
    assert_near(result, runs["alone"])
    ours, theirs = (
        run.weights_path.parent / "checkpoints" / "step-00000015" for run in (result, runs["alone"])
    )
    for file in (RUN_WEIGHTS, RUN_OPTIMIZER):
        torch.testing.assert_close(
            whole_tensors(ours, file), load_file(theirs / file), rtol=1e-4, atol=WEIGHT_NOISE
        )


def test_its_weights_are_exported(stage, runs, tmp_path):
    result = runs["four"]
    exported, trained = exported_and_trained(result, stage.checkpoint, tmp_path)
    for name, parameter in exported.named_parameters():
        assert torch.equal(parameter[: len(trained[name])], trained[name]), name


def test_reference_values_and_evaluation_are_those_of_one_process(stage, tmp_path):
    """Where a machine has room for a copy, those that compute together answer prompts of their own."""
    job = reference_job(
        tmp_path / "reference", stage.data, stage.checkpoint, rows_per_shard=8, sharding=TOGETHER
    )
    result = run_ranks(job, 4)
    assert (result.rows, result.rows_computed) == (40, 40)
    assert_same_reference(stage, result)
    other = checkpoint_ref(make_model(tmp_path / "other", seed=1))
    job = stage.evaluate_job(tmp_path / "evaluation", other, num_prompts=5, max_new_tokens=8, measure_kl=True)
    alone = run_here(job.at(tmp_path / "alone"))
    shared = run_ranks(job.model_copy(update={"sharding": TOGETHER}), 4, module="tests.programs.roomy_cards")
    assert_same_evaluation(shared, alone)
    assert shared.after["kl/per_token"] > 0.1
    told = [json.loads((job.out_dir / f"answered-{rank}.json").read_text()) for rank in range(4)]
    assert [of_rank["prompts"] for of_rank in told] == [2 * 3] * 2 + [2 * 2] * 2, "before and after"
    assert {of_rank["shards"] for of_rank in told} == {1}, "each machine has a copy"


def stage_of(config: PreTrainedConfig, root: Path) -> TinyStage:
    """A stage of another architecture; norms that are mixed up show only if they differ."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config.vocab_size, config.bos_token_id = len(tokenizer), None
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(mean=float(weight.dim() == 1), std=0.3 if weight.dim() == 1 else 0.15)
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    checkpoint = checkpoint_ref(root / "model")
    data = mix(make_rows(14), checkpoint, root / "data", "2")
    return TinyStage(root, checkpoint, data, run_here(reference_job(root / "reference", data, checkpoint)))


def short(stage: TinyStage, folder: Path, **more: object) -> TrainJob:
    return stage.train_job(folder, per_device=2, max_steps=3, checkpoint_every=2, **more)


def assert_same_short_run(result: TrainResult, alone: TrainResult) -> None:
    """The same weights, moments and steps within float noise. AdamW hides the scale of a gradient, its moments tell it."""
    ours, theirs = (load_file(run.weights_path / "model.safetensors") for run in (result, alone))
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[key], rtol=0, atol=WEIGHT_NOISE)
    ours, theirs = (
        whole_tensors(run.weights_path.parent / "checkpoints" / "step-00000002", RUN_OPTIMIZER)
        for run in (result, alone)
    )
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        noise = 1e-4 * float(theirs[key].abs().max())
        torch.testing.assert_close(
            tensor, theirs[key], rtol=0, atol=noise, msg=lambda text, key=key: f"{key}: {text}"
        )
    ours, theirs = (metrics_of(run.metrics_path.parent) for run in (result, alone))
    for figure in ("loss", "grad_norm", "logps/chosen"):
        assert [step[figure] for step in ours] == pytest.approx([step[figure] for step in theirs], rel=1e-5)
    assert result.all_parameters == alone.all_parameters


@pytest.mark.parametrize("name", MODELS)
def test_models_with_norms_of_queries(tmp_path, name):
    stage = stage_of(MODELS[name], tmp_path)
    alone = run_here(short(stage, tmp_path / "alone"))
    result = run_ranks(short(stage, tmp_path / "two", sharding=TOGETHER))
    assert_same_short_run(result, alone)


def test_in_bf16_it_goes_nearly_the_same_way(stage, tmp_path):
    settings = {"precision": "bf16", "reference": None, "reference_checkpoint": None}
    alone = run_here(short(stage, tmp_path / "alone", loss="simpo", **settings))
    result = run_ranks(short(stage, tmp_path / "two", loss="simpo", sharding=TOGETHER, **settings))
    assert_alike(result, alone, load_file(stage.checkpoint.path / "model.safetensors"))


def test_a_model_whose_heads_cannot_be_divided_is_refused_by_the_step(tmp_path):
    stage = TinyStage.make(tmp_path / "stage", num_key_value_heads=1)
    job = short(stage, tmp_path / "run", sharding=TOGETHER)
    assert start_ranks(job, 2).wait(PATIENCE_SECONDS) != 0
    error = read_error(job)
    assert error.kind == ConfigError.kind
    assert "its num_key_value_heads is 1" in error.message
