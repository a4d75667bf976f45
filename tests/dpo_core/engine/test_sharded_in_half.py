"""Weights that are shared out and gathered as bf16: what is sent, what is held, and that nothing exact is lost by it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from dpo_core.contract.config import AdapterConfig
from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.jobs import Sharding, TrainResult
from tests.step_process import evaluations_in, metrics_of, run_ranks
from tests.tiny_models import make_model
from tests.tiny_stage import checkpoint_ref, reference_job, run_here

pytestmark = pytest.mark.integration

SPLITTING = ("zero3", "fsdp2")


def assert_alike(
    result: TrainResult, expected: TrainResult, begun_with: dict[str, torch.Tensor | float]
) -> None:
    """In bf16 sums are rounded at other places: nearly the same metrics, and nearly the same way from the first weights."""
    ours, theirs = (load_file(run.weights_path / "model.safetensors") for run in (result, expected))
    assert ours.keys() == theirs.keys()
    ours, theirs = (
        torch.cat([(of[name] - first).flatten() for name, first in begun_with.items()])
        for of in (ours, theirs)
    )
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.95
    ours, theirs = (metrics_of(run.metrics_path.parent) for run in (result, expected))
    for name, noise in (("loss", 0.1), ("grad_norm", 0.1), ("logps/chosen", 0.005)):
        assert [step[name] for step in ours] == pytest.approx([step[name] for step in theirs], rel=noise), (
            name
        )


@pytest.mark.parametrize("name", SPLITTING)
def test_an_adapter_is_trained_by_an_objective_over_the_whole_batch(stage, tmp_path, name):
    """Frozen weights shared out beside trained ones; a pass without gradients before each step's forwards; bf16.

    Few steps: the last bit of a weight decides how values are rounded to bf16, and from then on runs drift apart.
    """
    settings = {
        "adapter": AdapterConfig(kind="lora", rank=4),
        "per_device": 1,
        "precision": "bf16",
        "checkpoint_every": 2,
        "max_steps": 3,
        "evaluation": EvaluationConfig(
            every=2, answers_every=1, num_prompts=3, max_new_tokens=4, measure_kl=True
        ),
    }
    job = reference_job(tmp_path / "reference", stage.data, stage.checkpoint, precision="bf16")
    values = run_ranks(job.model_copy(update={"sharding": Sharding(kind=name)})).reference
    alone = run_here(stage.train_job(tmp_path / "alone", "aot", reference=values, **settings))
    job = stage.train_job(
        tmp_path / "sharded", "aot", processes=2, reference=values, sharding=Sharding(kind=name), **settings
    )
    result = run_ranks(job, module="tests.programs.ranks_that_tell_what_they_hold")
    assert_alike(
        result,
        alone,
        {name: 0.0 for name in load_file(alone.weights_path / "model.safetensors") if "lora_B" in name},
    )
    found = evaluations_in(job.out_dir)
    assert [one["step"] for one in found] == [0, 2, 3]
    assert found[0]["kl/per_token"] == 0 != found[-1]["kl/per_token"]
    frozen = result.all_parameters - result.trained_parameters
    for rank in (0, 1):
        held = json.loads((job.out_dir / f"held-{rank}.json").read_text())
        assert held["half_weights"] == pytest.approx(frozen / 2, rel=0.01), (
            "norms alone are exact, under ZeRO"
        )
    assert (
        result.trained_parameters == alone.trained_parameters < alone.all_parameters == result.all_parameters
    )
    assert result.guard["largest_difference_per_token"] < 1e-2
    assert result.base_check["largest_difference_per_token"] < 1e-2


@pytest.mark.parametrize("name", SPLITTING)
def test_in_bf16_it_sends_eight_bytes_a_parameter_and_keeps_no_copy_of_a_weight(stage, tmp_path, name):
    """In a run that goes on from a checkpoint of fp32 weights under autocast, as all runs in bf16 wrote them before."""
    settings = {
        "per_device": 1,
        "precision": "bf16",
        "checkpoint_every": 2,
        "keep_checkpoints": 9,
        "max_steps": 4,
        # Under autocast the backward of a layer that is not computed again keeps its casts.
        "gradient_checkpointing": name == "zero3",
    }
    alone = run_here(stage.train_job(tmp_path / "alone", **settings))
    job = stage.train_job(tmp_path / "sharded", processes=2, sharding=Sharding(kind=name), **settings)
    begun = job.out_dir / "checkpoints" / "step-00000002"
    shutil.copytree(alone.weights_path.parent / "checkpoints" / "step-00000002", begun)
    (job.out_dir / "metrics.jsonl").write_bytes(alone.metrics_path.read_bytes())
    result = run_ranks(job, module="tests.programs.counting_ranks")
    assert result.resumed_from_step == 2
    assert_alike(result, alone, load_file(stage.checkpoint.path / "model.safetensors"))
    for key, tensor in load_file(result.weights_path / "model.safetensors").items():
        changed = (tensor != tensor.bfloat16()).double().mean()
        assert changed > 0.5, f"{key}: exact weights, not those that forwards gather"
    for rank in (0, 1):
        counted = json.loads((job.out_dir / f"counted-{rank}.json").read_text())
        assert counted["kept"] == 0
        assert counted["reduced_in"] == ["torch.float32"]
        assert 4 < (counted["gathered"] + counted["reduced"]) / result.all_parameters <= 8


@pytest.mark.parametrize("name", SPLITTING)
def test_steps_that_score_hold_and_compute_in_bf16_alone_on_every_rank(stage, tmp_path, name):
    """The reference pass and the evaluation, answers and their KL included: two bytes of a matrix's value on one of two
    ranks, and no linear in float32."""
    settings = {"precision": "bf16", "sharding": Sharding(kind=name)}
    pass_over_all = reference_job(
        tmp_path / "reference", stage.data, stage.checkpoint, cache_dir=tmp_path / "cache", **settings
    )
    other = checkpoint_ref(make_model(tmp_path / "other", seed=1))
    evaluation = stage.evaluate_job(
        tmp_path / "evaluation", other, num_prompts=3, max_new_tokens=4, measure_kl=True
    ).model_copy(update=settings)
    matrices = sum(
        tensor.numel()
        for tensor in load_file(stage.checkpoint.path / "model.safetensors").values()
        if tensor.dim() > 1
    )
    for job, num_models in ((pass_over_all, 1), (evaluation, 4)):  # before and after, and both again for KL
        run_ranks(job, module="tests.programs.scoring_ranks")
        of_ranks = [json.loads((job.out_dir / f"scored-{rank}.json").read_text()) for rank in (0, 1)]
        for models in zip(*of_ranks, strict=True):
            for model in models:
                assert model["held"].keys() == {"torch.bfloat16"}
                assert model["computed"] == ["torch.bfloat16"]
            held = [model["held"]["torch.bfloat16"] for model in models]
            assert sum(held) == pytest.approx(matrices, rel=0.01)
            assert held[0] == pytest.approx(held[1], rel=0.05)
        assert len(of_ranks[0]) == num_models
