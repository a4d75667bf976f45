"""Two processes over gloo, started as the launcher starts them, against one: the same values from half the work each.

Their reference pass and evaluation: ``engine/test_sharded.py``, beside those of back ends that split the weights.
"""

import pytest
import torch
from safetensors.torch import load_file

from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.results import read_error
from tests.dpo_core.training.test_resume import assert_same_run
from tests.step_process import evaluations_in, metrics_of, run_ranks, start_ranks, wait_for_death
from tests.tiny_stage import make_sets, run_here
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.integration


@pytest.mark.usefixtures("cold_steps")
def test_training_gives_the_weights_of_one_process(stage, tmp_path):
    """34 rows in global batches of 4, 2 pairs a process: in the last batch, of 2, one process has a filler only."""
    one = run_here(stage.train_job(tmp_path / "one", "dpo", per_device=2, num_epochs=2))
    job = stage.train_job(
        tmp_path / "two", "dpo", per_device=2, processes=2, num_epochs=2, checkpoint_every=5
    )
    two = run_ranks(job, module="tests.programs.hungry_rank")
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
    main, hungry = (float((tmp_path / "two" / f"peak-{rank}.txt").read_text()) for rank in range(2))
    assert ours[-1]["memory/peak_gib"] == pytest.approx(hungry, abs=0.05)
    assert hungry > main + 0.1


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


def test_killed_within_an_evaluation_that_answers_it_makes_it_again_with_the_same_bits(stage, tmp_path):
    """Three prompts and a set of one: ranks have unequal numbers of answers, and one of them none of the set."""
    asked = EvaluationConfig(every=2, answers_every=1, num_prompts=3, max_new_tokens=4, measure_kl=True)
    job = stage.train_job(
        tmp_path / "killed",
        "dpo",
        per_device=2,
        processes=2,
        max_steps=4,
        checkpoint_every=1,
        evaluation=asked,
        sets=make_sets({"safety": 1}, stage.checkpoint, tmp_path / "sets"),
    )
    whole = run_ranks(job.at(tmp_path / "whole"))
    ranks = start_ranks(job, 2, "tests.programs.killed_while_answering")
    assert ranks.wait(PATIENCE_SECONDS) != 0
    wait_for_death(ranks)
    assert [one["step"] for one in evaluations_in(job.out_dir)] == [0]
    result = run_ranks(job)
    assert result.resumed_from_step == 1
    assert_same_run(result, whole)
    ours, theirs = (
        [{name: value for name, value in one.items() if name != "evaluation_seconds"} for one in found]
        for found in (evaluations_in(job.out_dir), evaluations_in(tmp_path / "whole"))
    )
    assert ours == theirs
    assert [one["step"] for one in ours] == [0, 2, 4]


@pytest.mark.parametrize(("fast", "written"), [(0, 2), (1, 0)])
def test_ranks_write_checkpoints_and_evaluate_by_the_first_one_s_clock(
    stage, tmp_path, monkeypatch, fast, written
):
    by_the_clock = EvaluationConfig(every_minutes=10)
    job = stage.train_job(
        tmp_path,
        "dpo",
        per_device=2,
        processes=2,
        max_steps=3,
        checkpoint_every=1000,  # and after 10 minutes
        evaluation=by_the_clock,
    )
    monkeypatch.setenv("FAST_RANK", str(fast))
    run_ranks(job, module="tests.programs.fast_clock")
    assert len(list(tmp_path.glob("checkpoints/step-*"))) == written
    assert [one["step"] for one in evaluations_in(tmp_path)] == ([1, 2, 3] if written else [3])
