"""Objectives that look beyond a pair: the same run however the global batch is cut, dealt to processes, or interrupted."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dpo_core.contract.errors import Preempted, ReferenceMismatch
from dpo_core.contract.jobs import TrainJob, TrainResult
from dpo_core.contract.loss_config import Loss, LossConfig, LossSum, LossTerm
from dpo_core.contract.progress import Progress
from dpo_core.contract.refs import ReferenceRef
from dpo_core.contract.store import sha256_file
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.data.reference_cache import ReferenceRows, read_aligned, write_aligned
from dpo_core.engine.checkpoint import newest_checkpoint
from dpo_core.loss.losses import LOSSES
from dpo_core.model.load import load_model
from dpo_core.steps.train import set_up
from dpo_core.training.step_loss import PairByPair, WholeBatch
from dpo_core.training.stop_request import StopRequest
from dpo_core.training.trainer import Trainer
from tests.dpo_core.model.test_forward import by_hand
from tests.step_process import metrics_of, run_ranks
from tests.tiny_models import make_model
from tests.tiny_stage import checkpoint_ref, reference_job, run_here

LOG2 = math.log(2)
BEYOND_A_PAIR = [
    *(LossConfig(name=name, beta=0.5) for name in ("aot", "aot_pair", "bco_pair")),
    LossSum(
        terms=(
            LossTerm(name="dpo", beta=0.5, weight=0.8),
            LossTerm(name="bco_pair", beta=0.5, weight=0.2),
            LossTerm(name="sft"),
        )
    ),
    LossConfig(name="aot", beta=0.5, label_smoothing=0.1, ld_alpha=0.3, rpo_alpha=0.2),
    LossSum(terms=(LossTerm(name="aot", beta=0.5), LossTerm(name="sft", weight=0.3))),
]
NUM_STEPS = 8
COMPARED = (
    "loss",
    "grad_norm",
    "rewards/margins",
    "rewards/accuracies",
    "rewards/average",
    "logps/chosen",
    "pairs",
)


def name_of(loss: Loss) -> str:
    return loss.title + "-and-more" * (isinstance(loss, LossConfig) and loss.rpo_alpha > 0)


@pytest.fixture(scope="module")
def other(stage, tmp_path_factory) -> dict:
    """Another model as the reference: log ratios are spread from the first step on, so ranks matter."""
    root = tmp_path_factory.mktemp("other")
    checkpoint = checkpoint_ref(make_model(root / "model", seed=1))
    values = run_here(reference_job(root / "reference", stage.data, checkpoint))
    return {"stage": stage, "reference": values.reference, "reference_checkpoint": checkpoint}


def job_of(other: dict, folder, loss: Loss, **others) -> TrainJob:
    """Steps of 11 pairs, the last of every epoch of 1: of two processes one has a filler only."""
    fields = {name: value for name, value in other.items() if name != "stage"}
    return other["stage"].train_job(folder, loss, num_epochs=2, global_pairs=11, **fields, **others)


def trainer_of(job: TrainJob, stop: StopRequest) -> Trainer:
    """What a process of this job has set up."""
    job.out_dir.mkdir(parents=True, exist_ok=True)
    return set_up(job, Progress("train", sink=lambda event: None), stop)


def loss_curve(folder) -> list[float]:
    return [step["loss"] for step in metrics_of(folder)]


def assert_same_within_noise(result: TrainResult, folder, expected: TrainResult, expected_folder) -> None:
    ours, theirs = metrics_of(folder), metrics_of(expected_folder)
    assert len(ours) == len(theirs) == NUM_STEPS
    for name in COMPARED:
        assert [step[name] for step in ours] == pytest.approx(
            [step[name] for step in theirs], rel=1e-3, abs=2e-5
        ), name
    weights = load_file(expected.weights_path / "model.safetensors")
    for name, tensor in load_file(result.weights_path / "model.safetensors").items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-4)


@pytest.mark.integration  # seconds
@pytest.mark.parametrize("loss", BEYOND_A_PAIR, ids=name_of)
def test_the_cut_of_a_batch_does_not_show(other, tmp_path, loss):
    """Global batches of 11 pairs in forwards of 11, 4 and 1 at most."""
    results = {
        at_once: run_here(job_of(other, tmp_path / f"{at_once}", loss, per_device=at_once))
        for at_once in (11, 4, 1)
    }
    for at_once in (4, 1):
        assert_same_within_noise(results[at_once], tmp_path / f"{at_once}", results[11], tmp_path / "11")


@pytest.mark.parametrize("name", ["aot", "aot_pair"])
def test_sorting_what_one_forward_holds_would_show(other, tmp_path, name):
    """The test above can fail: pair by pair in the same forwards, these losses are others."""
    loss = LossConfig(name=name, beta=0.5)
    run_here(job_of(other, tmp_path / "whole", loss, per_device=1))
    trainer = trainer_of(job_of(other, tmp_path / "parts", loss, per_device=1), StopRequest())
    trainer.step_loss = PairByPair(loss, trainer.step_loss.reference)
    trainer.train()
    differences = [
        abs(a - b)
        for a, b in zip(loss_curve(tmp_path / "whole"), loss_curve(tmp_path / "parts"), strict=True)
    ]
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
    assert (state.step, state.num_rewards) == (NUM_STEPS - 1, sum(answers))
    assert state.mean_reward == pytest.approx(expected, rel=1e-12)
    assert abs(state.mean_reward) > 0.001  # it moves


@pytest.mark.parametrize("name", ["bco_pair", "aot"])
def test_interrupted_after_every_step_it_ends_with_the_same_bits(other, tmp_path, name):
    loss = LossConfig(name=name, beta=0.5)
    whole = run_here(job_of(other, tmp_path / "whole", loss))
    job = job_of(other, tmp_path / "parts", loss)
    for done in range(1, NUM_STEPS):
        trainer = trainer_of(job, StopRequest(received=True))
        assert trainer.state.step == done - 1
        with pytest.raises(Preempted):
            trainer.train()
    parts = run_here(job)
    assert parts.resumed_from_step == NUM_STEPS - 1
    assert sha256_file(parts.weights_path / "model.safetensors") == sha256_file(
        whole.weights_path / "model.safetensors"
    )
    assert loss_curve(tmp_path / "parts") == loss_curve(tmp_path / "whole")


# What the first step must show, the policy being the reference still: the loss of a zero margin by hand, beta 0.5.
AT_THE_START = {
    "dpo": LOG2,
    "dpo_norm": LOG2,
    "ipo": 1.0,
    "hinge": 1.0,
    "robust": LOG2,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "exo_pair": -LOG2 - math.log(0.1 * 0.9) / 2,
    "sppo_hard": 2.0,
    "nca_pair": 2 * LOG2,
    "bco_pair": 2 * LOG2,
    "aot": LOG2,
    "aot_pair": LOG2,
    "discopop": (LOG2 + 1) / 2,
    "dpop": LOG2,
}


def test_every_objective_that_starts_at_a_known_loss_is_listed():
    assert set(AT_THE_START) == set(LOSSES) - {"simpo", "sft", "wpo"}  # no reference; weights by pair


@pytest.mark.parametrize("name", sorted(AT_THE_START))
def test_the_guard_and_the_first_step_find_the_loss_of_a_zero_margin(stage, tmp_path, name):
    loss = LossConfig(name=name, beta=0.5, label_smoothing=0.1 if name == "exo_pair" else 0)
    result = run_here(stage.train_job(tmp_path, loss, num_epochs=3, learning_rate=2e-4))
    assert result.guard["zero_margin_loss"] == pytest.approx(AT_THE_START[name], rel=1e-6)
    assert result.guard["loss"] == pytest.approx(AT_THE_START[name], rel=1e-4)
    assert result.guard["largest_reward"] < 1e-3
    assert result.first_metrics["loss"] == pytest.approx(AT_THE_START[name], rel=1e-4)
    assert result.last_metrics["loss"] < result.first_metrics["loss"] - 0.01  # and it is learned


def test_the_guard_leaves_an_added_likelihood_out(stage, tmp_path):
    plain = run_here(stage.train_job(tmp_path / "plain", LossConfig(name="dpo", beta=0.5), max_steps=1))
    added = run_here(
        stage.train_job(tmp_path / "added", LossConfig(name="dpo", beta=0.5, rpo_alpha=0.5), max_steps=1)
    )
    assert added.guard == plain.guard
    nll = -plain.first_metrics["logps_per_token/chosen"]
    assert added.first_metrics["loss"] == pytest.approx(LOG2 + 0.5 * nll, rel=1e-4)


def test_the_guard_takes_what_a_sum_compares(stage, tmp_path):
    terms = (
        LossTerm(name="dpo", beta=0.5, weight=0.8),
        LossTerm(name="hinge", weight=2),
        LossTerm(name="sft"),
    )
    result = run_here(stage.train_job(tmp_path, LossSum(terms=terms), max_steps=1))
    assert result.guard["zero_margin_loss"] == pytest.approx(0.8 * LOG2 + 2)
    assert result.guard["loss"] == pytest.approx(0.8 * LOG2 + 2, rel=1e-4)


def test_the_guard_refuses_tails_that_were_changed(stage, tmp_path):
    """ld_alpha trains on them, and no sum would show it."""
    keys = PairDataset.open(stage.data.path, "train").row_keys
    rows = read_aligned(stage.reference.reference.path, "train", keys)
    write_aligned(
        tmp_path / "train.npz", keys, ReferenceRows(rows.sums, rows.tokens, rows.tails - np.float32(0.5))
    )
    job = stage.train_job(
        tmp_path / "run",
        LossConfig(name="dpo", beta=0.5, ld_alpha=0.5),
        reference=ReferenceRef(path=tmp_path, fingerprint="changed"),
    )
    with pytest.raises(ReferenceMismatch, match=r"on row \d+ they differ by"):
        run_here(job)


@pytest.mark.parametrize("name", ["aot", "aot_pair"])
def test_held_out_pairs_are_judged_as_one_batch(stage, tmp_path, name):
    """By hand from the evaluation's own figures of every pair: sorted over all six, whatever the token budget."""
    trained = run_here(stage.train_job(tmp_path / "run", num_epochs=4))
    folder = make_model(tmp_path / "model")
    (folder / "model.safetensors").write_bytes((trained.weights_path / "model.safetensors").read_bytes())
    checkpoint, dataset = checkpoint_ref(folder), PairDataset.open(stage.data.path, "held_out")
    reference = read_aligned(stage.reference.reference.path, "held_out", dataset.row_keys)
    model = load_model(checkpoint)
    sums = np.array(
        [
            [
                by_hand(model, pair.chosen_ids, pair.chosen_trained),
                by_hand(model, pair.rejected_ids, pair.rejected_trained),
            ]
            for pair in dataset
        ]
    )
    compared = {
        "aot": (sums - reference.sums).T,
        "aot_pair": [values[:, 0] - values[:, 1] for values in (sums, reference.sums)],
    }[name]
    margins = 0.5 * (np.sort(compared[0]) - np.sort(compared[1]))
    for budget in (1, 100_000):
        job = stage.evaluate_job(tmp_path / str(budget), checkpoint, num_prompts=0, tokens_per_batch=budget)
        result = run_here(job.model_copy(update={"loss": LossConfig(name=name, beta=0.5)}))
        assert result.after["loss"] == pytest.approx(np.log1p(np.exp(-margins)).mean(), rel=1e-4)
        assert result.before["loss"] == pytest.approx(LOG2, rel=1e-5)


@pytest.mark.integration
@pytest.mark.parametrize("loss", BEYOND_A_PAIR[:4], ids=name_of)
def test_two_processes_train_what_one_does(other, tmp_path, loss):
    one = run_here(job_of(other, tmp_path / "one", loss, per_device=11))
    two = run_ranks(job_of(other, tmp_path / "two", loss, per_device=1, processes=2))
    assert_same_within_noise(two, tmp_path / "two", one, tmp_path / "one")
