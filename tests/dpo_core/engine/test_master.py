"""``train.precision: bf16_pure``: bf16 weights that are rounded copies of fp32 masters."""

import pytest
import torch
from safetensors.torch import load_file

from dpo_core.contract.config import OptimConfig
from dpo_core.contract.jobs import Sharding, TrainJob
from dpo_core.contract.refs import ReferenceRef
from dpo_core.data.pair_batch import collate
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.engine.distributed import start_accelerator
from dpo_core.engine.master import MasterEngine
from dpo_core.model import logprobs
from dpo_core.model.forward import PairScorer
from dpo_core.model.load import load_model
from tests.dpo_core.training.test_resume import assert_same_run
from tests.programs.small_chunks import TOKENS, VOCABULARY
from tests.step_process import metrics_of, run_ranks
from tests.tiny_stage import TinyStage, reference_job, run_here


@pytest.fixture(scope="module")
def reference(stage, tmp_path_factory) -> ReferenceRef:
    """Values of the rounded weights."""
    folder = tmp_path_factory.mktemp("reference")
    return run_here(
        reference_job(folder / "run", stage.data, stage.checkpoint, precision="bf16_pure")
    ).reference


def pure_job(stage: TinyStage, folder, reference: ReferenceRef, **settings) -> TrainJob:
    return stage.train_job(folder, "dpo", precision="bf16_pure", reference=reference, **settings)


def started(stage: TinyStage) -> MasterEngine:
    scorer = PairScorer(load_model(stage.checkpoint), "bf16_pure")
    return MasterEngine.start(
        start_accelerator(Sharding()), scorer, OptimConfig(learning_rate=1e-3, max_grad_norm=1e9)
    )


def loss_of(engine_or_scorer, batch) -> torch.Tensor:
    scores = (
        engine_or_scorer.scores(batch)
        if isinstance(engine_or_scorer, MasterEngine)
        else engine_or_scorer(batch)
    )
    return scores.sums_S[0::2].sum() - scores.sums_S[1::2].sum()


def test_a_step_is_that_of_adamw_on_float32_copies(stage):
    """Two microbatches: each bf16 gradient is widened before they are added."""
    dataset = PairDataset.open(stage.data.path, "train")
    batches = [collate([dataset[row] for row in rows], rows, "prefix_sharing") for rows in ((0, 1), (2, 3))]
    engine, plain = started(stage), PairScorer(load_model(stage.checkpoint), "bf16_pure")
    copies = [torch.nn.Parameter(weight.detach().float()) for weight in plain.parameters()]
    gradients = []
    for batch in batches:
        engine.backward(loss_of(engine, batch))
        plain.zero_grad()
        loss_of(plain, batch).backward()
        gradients.append([weight.grad.float() for weight in plain.parameters()])
    for copy, first, second in zip(copies, *gradients, strict=True):
        copy.grad = first + second
    torch.optim.AdamW(copies, lr=5e-4, weight_decay=0.0, fused=True).step()
    engine.step(5e-4)
    for copy, master, weight in zip(copies, engine.masters.values(), engine.scorer.parameters(), strict=True):
        assert torch.equal(copy, master)
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, master.to(torch.bfloat16))
        assert weight.grad is None


def test_steps_too_small_for_bf16_add_up_in_the_masters(stage, tmp_path, reference):
    """A weight of 0.2 has neighbours 0.001 apart in bf16; 9 steps of 1e-6 change only the master."""
    result = run_here(pure_job(stage, tmp_path, reference, learning_rate=1e-6))
    trained = load_file(result.weights_path / "model.safetensors")
    start = load_model(stage.checkpoint).state_dict()
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    moved = torch.cat([(trained[name] - start[name].bfloat16().float()).abs().flatten() for name in trained])
    assert 0 < moved.max() < 1e-5
    assert (moved > 0).float().mean() > 0.5


def test_it_stays_near_fp32(stage, tmp_path, reference):
    fp32 = run_here(stage.train_job(tmp_path / "fp32", "dpo"))
    pure = run_here(pure_job(stage, tmp_path / "pure", reference))
    assert pure.guard["allowed_difference_per_token"] == 0.05
    losses = [[step["loss"] for step in metrics_of(tmp_path / name)] for name in ("fp32", "pure")]
    assert losses[1] == pytest.approx(losses[0], abs=0.1)
    assert fp32.weights_fingerprint != pure.weights_fingerprint


def test_a_resumed_run_has_the_same_bits(stage, tmp_path, reference):
    whole = run_here(pure_job(stage, tmp_path / "whole", reference, checkpoint_every=3))
    job = pure_job(stage, tmp_path / "parts", reference, checkpoint_every=3)
    run_here(job)
    for folder in sorted((tmp_path / "parts" / "checkpoints").iterdir())[1:]:
        for file in folder.iterdir():
            file.write_bytes(b"")  # the later ones are damaged
    (tmp_path / "parts" / "result.json").unlink()
    resumed = run_here(job)
    assert resumed.resumed_from_step == 3
    assert_same_run(resumed.model_copy(update={"resumed_from_step": None}), whole)


@pytest.mark.integration
def test_two_processes_give_the_weights_of_one(stage, tmp_path, reference, monkeypatch):
    # The ranks cut logits so, and bf16 rounds each chunk's product.
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", TOKENS * VOCABULARY)
    one = run_here(pure_job(stage, tmp_path / "one", reference, per_device=1))
    two = run_ranks(pure_job(stage, tmp_path / "two", reference, per_device=1, processes=2))
    expected = load_file(one.weights_path / "model.safetensors")
    for name, tensor in load_file(two.weights_path / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=5e-5)
