"""Objectives that look beyond a pair: the same run however the global batch is cut, dealt to processes, or interrupted."""

import pytest
import torch
from safetensors.torch import load_file

from dpo_core.checkpoint import newest_checkpoint
from dpo_core.config import LossConfig
from dpo_core.errors import Preempted
from dpo_core.jobs import TrainJob
from dpo_core.progress import Progress
from dpo_core.results import TrainResult
from dpo_core.step_loss import PairByPair, WholeBatch
from dpo_core.stop_request import StopRequest
from dpo_core.store import sha256_file
from dpo_core.train import set_up
from dpo_core.trainer import Trainer
from tests.dpo_core.test_two_processes import run_in_two
from tests.step_process import metrics_of
from tests.tiny_models import make_model
from tests.tiny_stage import checkpoint_ref, reference_job, run_here

BEYOND_A_PAIR = [*(LossConfig(name=name, beta=0.5) for name in ("aot", "aot_pair", "bco_pair")),
                 LossConfig(name="aot", beta=0.5, label_smoothing=0.1, ld_alpha=0.3, rpo_alpha=0.2)]
COMPARED = ("loss", "grad_norm", "rewards/margins", "rewards/accuracies", "rewards/average", "logps/chosen", "pairs")


def name_of(loss: LossConfig) -> str:
    return loss.name + "-and-more" * (loss.rpo_alpha > 0)


@pytest.fixture(scope="module")
def other(stage, tmp_path_factory) -> dict:
    """Another model as the reference: log ratios are spread from the first step on, so ranks matter."""
    root = tmp_path_factory.mktemp("other")
    checkpoint = checkpoint_ref(make_model(root / "model", seed=1))
    values = run_here(reference_job(root / "reference", stage.data, checkpoint))
    return {"stage": stage, "reference": values.reference, "reference_checkpoint": checkpoint}


def job_of(other: dict, folder, loss: LossConfig, **others) -> TrainJob:
    """Ten steps of 8 pairs, the last of either epoch of 2."""
    fields = {name: value for name, value in other.items() if name != "stage"}
    return other["stage"].train_job(folder, loss, num_epochs=2, global_pairs=8, **fields, **others)


def trainer_of(job: TrainJob, stop: StopRequest) -> Trainer:
    """What a process of this job has set up."""
    job.out_dir.mkdir(parents=True, exist_ok=True)
    return set_up(job, Progress("train", sink=lambda event: None), stop)


def loss_curve(folder) -> list[float]:
    return [step["loss"] for step in metrics_of(folder)]


def assert_same_within_noise(result: TrainResult, folder, expected: TrainResult, expected_folder) -> None:
    ours, theirs = metrics_of(folder), metrics_of(expected_folder)
    assert len(ours) == len(theirs) == 10
    for name in COMPARED:
        assert [step[name] for step in ours] == pytest.approx([step[name] for step in theirs], rel=1e-3, abs=2e-5), name
    weights = load_file(expected.weights_path / "model.safetensors")
    for name, tensor in load_file(result.weights_path / "model.safetensors").items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("loss", BEYOND_A_PAIR, ids=name_of)
def test_the_cut_of_a_batch_does_not_show(other, tmp_path, loss):
    """Global batches of 8 pairs in forwards of 8, 4, 2 and 1."""
    results = {at_once: run_here(job_of(other, tmp_path / f"{at_once}", loss, per_device=at_once))
               for at_once in (8, 4, 2, 1)}
    for at_once in (4, 2, 1):
        assert_same_within_noise(results[at_once], tmp_path / f"{at_once}", results[8], tmp_path / "8")


@pytest.mark.parametrize("name", ["aot", "aot_pair"])
def test_sorting_what_one_forward_holds_would_show(other, tmp_path, name):
    """The test above can fail: pair by pair in the same forwards, these losses are others."""
    loss = LossConfig(name=name, beta=0.5)
    run_here(job_of(other, tmp_path / "whole", loss, per_device=1))
    trainer = trainer_of(job_of(other, tmp_path / "parts", loss, per_device=1), StopRequest())
    trainer.step_loss = PairByPair(loss, trainer.step_loss.reference)
    trainer.train()
    differences = [abs(a - b) for a, b in zip(loss_curve(tmp_path / "whole"), loss_curve(tmp_path / "parts"), strict=True)]
    assert max(differences) > 0.01


def test_the_whole_batch_way_gives_the_gradients_of_the_direct_way(other, tmp_path):
    """dpo needs no whole batch, so both ways must agree: the surrogate has the gradient of the loss."""
    loss = LossConfig(name="dpo", beta=0.5, ld_alpha=0.4, rpo_alpha=0.1)
    results = {}
    for way in (PairByPair, WholeBatch):
        trainer = trainer_of(job_of(other, tmp_path / way.__name__, loss), StopRequest())
        trainer.step_loss = way(loss, trainer.step_loss.reference)
        trainer.train()
        results[way] = trainer.engine.scorer.model.state_dict()
    for name, tensor in results[WholeBatch].items():
        torch.testing.assert_close(tensor, results[PairByPair][name], rtol=1e-3, atol=1e-4)
    whole, direct = (loss_curve(tmp_path / way.__name__) for way in (WholeBatch, PairByPair))
    assert whole == pytest.approx(direct, rel=1e-4)
    assert max(whole) - min(whole) > 0.1


def test_the_threshold_of_bco_is_the_mean_reward_of_earlier_steps(other, tmp_path):
    job = job_of(other, tmp_path, LossConfig(name="bco_pair", beta=0.5), checkpoint_every=1)
    run_here(job)
    state = newest_checkpoint(tmp_path / "checkpoints", job.fingerprint)[1]
    steps = metrics_of(tmp_path)[: state.step]
    answers = [2 * step["pairs"] for step in steps]
    expected = sum(step["rewards/average"] * n for step, n in zip(steps, answers, strict=True)) / sum(answers)
    assert (state.step, state.num_rewards) == (9, sum(answers))
    assert state.mean_reward == pytest.approx(expected, rel=1e-12)
    assert abs(state.mean_reward) > 0.001  # it moves


@pytest.mark.parametrize("name", ["bco_pair", "aot"])
def test_interrupted_after_every_step_it_ends_with_the_same_bits(other, tmp_path, name):
    loss = LossConfig(name=name, beta=0.5)
    whole = run_here(job_of(other, tmp_path / "whole", loss))
    job = job_of(other, tmp_path / "parts", loss)
    for done in range(1, 10):
        trainer = trainer_of(job, StopRequest(received=True))
        assert trainer.state.step == done - 1
        with pytest.raises(Preempted):
            trainer.train()
    parts = run_here(job)
    assert parts.resumed_from_step == 9
    assert sha256_file(parts.weights_path / "model.safetensors") == sha256_file(whole.weights_path / "model.safetensors")
    assert loss_curve(tmp_path / "parts") == loss_curve(tmp_path / "whole")


@pytest.mark.integration
@pytest.mark.parametrize("loss", BEYOND_A_PAIR[:3], ids=name_of)
def test_two_processes_train_what_one_does(other, tmp_path, loss):
    one = run_here(job_of(other, tmp_path / "one", loss, per_device=8))
    two = run_in_two(job_of(other, tmp_path / "two", loss, per_device=1, processes=2))
    assert_same_within_noise(two, tmp_path / "two", one, tmp_path / "one")
