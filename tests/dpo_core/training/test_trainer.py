"""The training step on a tiny model: every objective's first loss by hand, the step-0 guard, precision, what goes wrong."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dpo_core.contract.errors import ConfigError, NonFinite, ReferenceMismatch, StoreError
from dpo_core.contract.loss_config import LossConfig
from dpo_core.contract.progress import Progress
from dpo_core.contract.refs import CheckpointRef, ReferenceRef
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.data.reference_cache import ReferenceRows, read_aligned, write_aligned
from dpo_core.model.load import load_model
from dpo_core.steps.train import set_up
from dpo_core.training.stop_request import StopRequest
from tests.programs.overflowing_ranks import overflow
from tests.step_process import metrics_of
from tests.tiny_models import make_model
from tests.tiny_stage import TinyStage, checkpoint_ref, reference_job, run_here

LOG2 = math.log(2)


def weights_of(result) -> dict[str, torch.Tensor]:
    return load_file(result.weights_path / "model.safetensors")


def reference_rows(stage: TinyStage) -> ReferenceRows:
    keys = PairDataset.open(stage.data.path, "train").row_keys
    return read_aligned(stage.reference.reference.path, "train", keys)


def mean_squares(stage: TinyStage, num_rows: int) -> np.ndarray:
    """log sum_v p(v)^2 of the checkpoint, mean over each answer's trained tokens, one answer at a time. [num_rows, 2]"""
    model, dataset = load_model(stage.checkpoint), PairDataset.open(stage.data.path, "train")

    def of(ids: np.ndarray, trained: np.ndarray) -> float:
        with torch.no_grad():
            probabilities = model(torch.tensor(ids)[None].long()).logits[0].double().softmax(-1)
        return float(probabilities.square().sum(-1).log()[:-1][torch.tensor(trained[1:]).bool()].mean())

    pairs = [dataset[row] for row in range(num_rows)]
    return np.array(
        [[of(p.chosen_ids, p.chosen_trained), of(p.rejected_ids, p.rejected_trained)] for p in pairs]
    )


@pytest.fixture(scope="module")
def other_checkpoint(tmp_path_factory) -> CheckpointRef:
    """A model with other weights."""
    return checkpoint_ref(make_model(tmp_path_factory.mktemp("other"), seed=1))


@pytest.fixture(scope="module")
def other_reference(stage, other_checkpoint, tmp_path_factory) -> ReferenceRef:
    """That model's values of the stage's rows."""
    return run_here(
        reference_job(tmp_path_factory.mktemp("other-run"), stage.data, other_checkpoint)
    ).reference


@pytest.mark.parametrize("name", ["dpo", "dpo_norm", "ipo", "wpo", "simpo"])
def test_the_first_loss_is_that_of_an_untrained_policy(stage, tmp_path, name):
    """The policy is still the reference, so its logps are known: rows 0 to 3 of the reference values."""
    loss = LossConfig(name=name, beta=2.0, gamma_beta_ratio=0.3)
    job = stage.train_job(tmp_path, loss)
    result = run_here(job)
    rows = reference_rows(stage)
    means = rows.sums[:4] / rows.tokens[:4]
    expected = {
        "dpo": LOG2,
        "dpo_norm": LOG2,
        "ipo": (1 / (2 * 2.0)) ** 2,
        "wpo": (np.exp((means - mean_squares(stage, 4)).sum(axis=1)) * LOG2).mean(),
        "simpo": np.log1p(np.exp(-2.0 * (means[:, 0] - means[:, 1] - 0.3))).mean(),
    }[name]
    first, last = result.first_metrics, result.last_metrics
    assert first["loss"] == pytest.approx(expected, rel=1e-5)
    assert first["logps/chosen"] == pytest.approx(rows.sums[:4, 0].mean(), rel=1e-5)
    assert first["logps_per_token/rejected"] == pytest.approx(means[:, 1].mean(), rel=1e-5)
    assert (first["step"], last["step"], result.steps, result.pairs) == (1, 9, 9, 34)
    assert [step["pairs"] for step in metrics_of(tmp_path)] == [4] * 8 + [2]
    if name == "simpo":
        assert (job.reference, result.guard) == (None, {})
    else:
        assert result.guard["zero_margin_loss"] == pytest.approx(1 / 16 if name == "ipo" else LOG2)
        assert result.guard["loss"] == pytest.approx(result.guard["zero_margin_loss"], rel=1e-4)
        assert result.guard["largest_reward"] < 1e-3
        assert result.guard["largest_difference_per_token"] < 1e-5


def test_rows_are_learned(stage, tmp_path):
    result = run_here(stage.train_job(tmp_path, "dpo", num_epochs=4))
    assert (result.steps, result.pairs) == (36, 136)
    assert result.last_metrics["rewards/accuracies"] == 1.0
    assert result.last_metrics["loss"] < 0.1
    assert result.last_metrics["epoch"] == 4


def test_metrics_have_the_names_of_both_peers(stage, tmp_path):
    run_here(stage.train_job(tmp_path, "dpo", max_steps=2))
    for step in metrics_of(tmp_path):
        assert step["train_loss"] == step["loss"]
        assert step["rewards/accuracy"] == step["rewards/accuracies"]
        assert step["rewards/margin"] == step["rewards/margins"]
        assert step["rewards/average"] == pytest.approx(
            (step["rewards/chosen"] + step["rewards/rejected"]) / 2
        )
        assert min(step["grad_norm"], step["tokens_per_second"], step["memory/peak_gib"], step["epoch"]) > 0
        assert step["learning_rate"] >= 0
        assert step["tokens_per_second_per_device"] == step["tokens_per_second"]  # of one process
        assert step["tflops_per_device"] > 0
        assert "mfu" not in step  # a CPU's peak is not known
        assert min(step[f"seconds/{part}"] for part in ("data", "exchange", "checkpoint")) >= 0
    lengths = PairDataset.open(stage.data.path, "train").lengths
    assert [step["tokens/total"] for step in metrics_of(tmp_path)] == [lengths[:4].sum(), lengths[:8].sum()]


def tampered(stage: TinyStage, folder, rows: ReferenceRows) -> ReferenceRef:
    folder.mkdir()
    write_aligned(folder / "train.npz", PairDataset.open(stage.data.path, "train").row_keys, rows)
    return ReferenceRef(path=folder, fingerprint="tampered")


@pytest.mark.parametrize("loss", ["dpo", "dpo_norm", "ipo", "wpo"])
def test_the_guard_refuses_values_that_were_changed(stage, tmp_path, loss):
    rows = reference_rows(stage)
    changed = tampered(
        stage,
        tmp_path / "reference",
        ReferenceRows(rows.sums - np.float32(0.01) * rows.tokens, rows.tokens, rows.tails),
    )
    with pytest.raises(
        ReferenceMismatch, match=r"on row \d+ they differ by 0\.01 nats a token .*allowed 0\.0001"
    ):
        run_here(stage.train_job(tmp_path / "run", loss, reference=changed))
    assert not list((tmp_path / "run").glob("*/model.safetensors"))
    assert metrics_of(tmp_path / "run") == []


def test_the_guard_refuses_values_of_other_labels(stage, tmp_path):
    rows = reference_rows(stage)
    changed = tampered(stage, tmp_path / "reference", ReferenceRows(rows.sums, rows.tokens + 1, rows.tails))
    with pytest.raises(
        ReferenceMismatch, match=r"Row \d+ trains \d+ \+ \d+ tokens, the reference cache counted"
    ):
        run_here(stage.train_job(tmp_path / "run", reference=changed))


def test_the_guard_refuses_another_models_values(stage, tmp_path, other_reference):
    with pytest.raises(ReferenceMismatch, match="of another checkpoint, chat template or precision"):
        run_here(stage.train_job(tmp_path, reference=other_reference))


def test_a_named_reference_is_recomputed_with_that_model(stage, tmp_path, other_checkpoint, other_reference):
    named = {"reference_checkpoint": other_checkpoint}
    result = run_here(stage.train_job(tmp_path / "right", reference=other_reference, **named))
    assert result.guard["largest_difference_per_token"] < 1e-5
    assert result.first_metrics["rewards/chosen"] != 0  # policy and reference are two models
    with pytest.raises(ReferenceMismatch):
        run_here(stage.train_job(tmp_path / "wrong", **named))


def test_reference_values_of_other_rows_are_refused(stage, tmp_path):
    keys = PairDataset.open(stage.data.path, "train").row_keys
    write_aligned(tmp_path / "train.npz", keys[::-1], reference_rows(stage))
    with pytest.raises(StoreError, match="of another mixture"):
        run_here(stage.train_job(tmp_path / "run", reference=ReferenceRef(path=tmp_path, fingerprint="x")))


def test_infinite_weights_stop_the_run_and_name_the_rows(stage, tmp_path):
    model = load_model(stage.checkpoint)
    with torch.no_grad():
        model.model.norm.weight[0] = float("inf")
    folder = make_model(tmp_path / "model")
    model.save_pretrained(folder)
    with pytest.raises(
        NonFinite, match=r"Step 1: loss nan, .*Rows of the batch: \[0, 1, 2, 3\]\. No checkpoint was"
    ):
        run_here(stage.train_job(tmp_path / "run", "simpo", checkpoint=checkpoint_ref(folder)))
    assert metrics_of(tmp_path / "run") == []


def test_an_infinite_gradient_of_a_finite_loss_stops_the_run_and_the_checkpoint_before_it_is_good(
    stage, tmp_path
):
    """Step 6 has already changed the weights in memory when its gradient is found out; nothing of that is written."""
    whole = run_here(stage.train_job(tmp_path / "whole"))
    job = stage.train_job(tmp_path / "run", checkpoint_every=2)
    job.write()
    trainer = set_up(job, Progress("train", sink=lambda event: None), StopRequest())
    overflow(trainer)
    with pytest.raises(
        NonFinite, match=r"Step 6: loss 0\.\d+, gradient norm (nan|inf)\. Rows .*: \[20, 21, 22, 23\]"
    ):
        trainer.train()
    assert len(metrics_of(job.out_dir)) == 5
    assert sorted(folder.name for folder in (job.out_dir / "checkpoints").iterdir())[-1] == "step-00000004"
    again = run_here(job)
    assert again.resumed_from_step == 4
    assert again.weights_fingerprint == whole.weights_fingerprint


def test_bf16_stays_near_fp32_and_keeps_fp32_weights(stage, tmp_path):
    fp32 = run_here(stage.train_job(tmp_path / "fp32", "dpo"))
    values = run_here(
        reference_job(tmp_path / "reference", stage.data, stage.checkpoint, precision="bf16")
    ).reference
    bf16 = run_here(stage.train_job(tmp_path / "bf16", "dpo", reference=values, precision="bf16"))
    assert bf16.guard["allowed_difference_per_token"] == 0.05
    assert bf16.guard["loss"] == pytest.approx(LOG2, abs=0.05)
    tensors = weights_of(bf16)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert bf16.weights_fingerprint != fp32.weights_fingerprint
    losses = [[step["loss"] for step in metrics_of(tmp_path / name)] for name in ("fp32", "bf16")]
    assert losses[1] == pytest.approx(losses[0], abs=0.1)


def test_a_reference_file_that_changed_since_it_was_written_is_refused(stage, tmp_path):
    """Values shifted in every row but those that the guard looks at would train silently otherwise."""
    keys = PairDataset.open(stage.data.path, "train").row_keys
    rows = reference_rows(stage)
    write_aligned(tmp_path / "train.npz", keys, ReferenceRows(rows.sums + 1, rows.tokens, rows.tails))
    changed = stage.reference.reference.model_copy(update={"path": tmp_path})
    with pytest.raises(StoreError, match=r"train\.npz is damaged"):
        run_here(stage.train_job(tmp_path / "run", reference=changed))


def test_gradient_checkpointing_gives_the_same_weights(stage, tmp_path):
    plain = run_here(stage.train_job(tmp_path / "plain", "dpo"))
    job = stage.train_job(tmp_path / "recomputed", "dpo", gradient_checkpointing=True)
    recomputed = run_here(job)
    for name, tensor in weights_of(recomputed).items():
        torch.testing.assert_close(tensor, weights_of(plain)[name], rtol=1e-5, atol=1e-6)
    trainer = set_up(job.at(tmp_path), Progress("train", sink=lambda event: None), StopRequest())
    assert all(layer.gradient_checkpointing for layer in trainer.engine.scorer.model.model.layers)


def test_tied_and_untied_embeddings_are_trained_and_written_once(stage, tmp_path):
    for tied in (True, False):
        root = tmp_path / f"tied-{tied}"
        checkpoint = checkpoint_ref(make_model(root / "model", tie_word_embeddings=tied))
        values = run_here(reference_job(root / "reference", stage.data, checkpoint)).reference
        result = run_here(
            stage.train_job(
                root / "run", "dpo", checkpoint=checkpoint, reference=values, reference_checkpoint=checkpoint
            )
        )
        assert ("lm_head.weight" in weights_of(result)) is not tied


def test_a_job_for_more_processes_than_run_is_refused(stage, tmp_path):
    with pytest.raises(ConfigError, match="planned for 2 processes but 1 were started"):
        run_here(stage.train_job(tmp_path, per_device=2, processes=2))
