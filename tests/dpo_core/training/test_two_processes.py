"""Two processes over gloo, started as the launcher starts them, against one: the same values from half the work each.

Their reference pass and evaluation: ``engine/test_sharded.py``, beside those of back ends that split the weights.
"""

import pytest
import torch
from safetensors.torch import load_file

from dpo_core.contract.results import read_error
from tests.step_process import metrics_of, run_ranks, start_ranks
from tests.tiny_stage import run_here
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.integration


@pytest.mark.usefixtures("cold_steps")
def test_training_gives_the_weights_of_one_process(stage, tmp_path):
    """34 rows in global batches of 4, 2 pairs a process: in the last batch, of 2, one process has a filler only."""
    one = run_here(stage.train_job(tmp_path / "one", "dpo", per_device=2, num_epochs=2))
    job = stage.train_job(
        tmp_path / "two", "dpo", per_device=2, processes=2, num_epochs=2, checkpoint_every=5
    )
    two = run_ranks(job)
    assert two.job_fingerprint == one.job_fingerprint
    assert (two.steps, two.pairs) == (18, 68)
    expected = load_file(one.weights_path / "model.safetensors")
    for name, tensor in load_file(two.weights_path / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=5e-5)
    ours, theirs = metrics_of(tmp_path / "two"), metrics_of(tmp_path / "one")
    assert len(ours) == len(theirs) == 18  # one line a step: the main process's
    for name in ("loss", "grad_norm", "rewards/margins", "logps/chosen", "pairs"):
        assert [step[name] for step in ours] == pytest.approx(
            [step[name] for step in theirs], rel=1e-3, abs=1e-5
        ), name
    # While the policy is its reference, margins are rounding, which other chunks of logits have otherwise.
    accuracies = [[step["rewards/accuracies"] for step in steps[2:]] for steps in (ours, theirs)]
    assert accuracies[0] == pytest.approx(accuracies[1])
    assert [folder.name for folder in sorted((tmp_path / "two" / "checkpoints").iterdir())] == [
        "step-00000010",
        "step-00000015",
    ]


def test_ranks_that_find_different_layouts_say_so_and_do_not_wait_for_each_other(stage, tmp_path):
    job = stage.train_job(tmp_path, "dpo", per_device=2, processes=2)
    assert start_ranks(job, 2, "tests.programs.differing_ranks").wait(PATIENCE_SECONDS) != 0
    error = read_error(job)
    assert error.kind == "config"
    assert "differ in train.forward: rank 0 packed, rank 1 padded" in error.message


@pytest.mark.parametrize("first", [1, 3, 4])  # of before and after, then of KL's policy and its reference
def test_so_do_those_of_an_evaluation_and_of_its_kl(stage, tmp_path, monkeypatch, first):
    job = stage.evaluate_job(
        tmp_path / "evaluation", stage.checkpoint, num_prompts=2, max_new_tokens=4, measure_kl=True
    )
    monkeypatch.setenv("DIFFERS_FROM", str(first))
    assert start_ranks(job, 2, "tests.programs.differing_ranks").wait(PATIENCE_SECONDS) != 0
    error = read_error(job)
    assert error.kind == "config"
    assert "differ in train.forward: rank 0 packed, rank 1 padded" in error.message


@pytest.mark.parametrize(("fast", "written"), [(0, 2), (1, 0)])
def test_ranks_write_checkpoints_by_the_first_one_s_clock(stage, tmp_path, monkeypatch, fast, written):
    job = stage.train_job(
        tmp_path, "dpo", per_device=2, processes=2, max_steps=3, checkpoint_every=1000
    )  # 10 minutes
    monkeypatch.setenv("FAST_RANK", str(fast))
    run_ranks(job, module="tests.programs.fast_clock")
    assert len(list(tmp_path.glob("checkpoints/step-*"))) == written
