"""What ends a sharded run early: numbers that are not finite, a rank without memory, a request to stop. Two processes."""

import re

import pytest
import torch

from dpo_core.contract.results import read_error
from dpo_core.engine.checkpoint import newest_checkpoint
from dpo_core.model.load import load_model
from tasks.launch.process import stop_group
from tests.dpo_core.engine.test_sharded import SHARDINGS, SPLITTING, job_in
from tests.programs.slow_steps import HELD
from tests.programs.starved_ranks import FIT_CHECK, STARVED_IN
from tests.step_process import metrics_of, start_ranks
from tests.tiny_models import make_model
from tests.tiny_stage import checkpoint_ref
from tests.waiting import PATIENCE_SECONDS, wait_until

pytestmark = pytest.mark.integration


def test_a_weight_that_is_not_finite_ends_as_its_own_kind(stage, tmp_path):
    model = load_model(stage.checkpoint)
    with torch.no_grad():
        model.model.norm.weight[0] = float("inf")
    folder = make_model(tmp_path / "model")
    model.save_pretrained(folder)
    job = stage.train_job(
        tmp_path / "run", "simpo", processes=2, checkpoint=checkpoint_ref(folder), sharding=SHARDINGS["fsdp2"]
    )
    assert start_ranks(job, 2).wait(PATIENCE_SECONDS) != 0
    error = read_error(job)
    assert error.kind == "non_finite", error.message
    assert "Rows of the batch: [0, 1, 2, 3]" in error.message
    assert not (job.out_dir / "checkpoints").exists()


@pytest.mark.parametrize("name", SPLITTING)
def test_an_infinite_gradient_on_one_rank_ends_as_its_own_kind_and_the_checkpoint_before_it_is_good(
    stage, tmp_path, name
):
    job = job_in(stage, tmp_path, SHARDINGS[name])
    assert start_ranks(job, 2, "tests.programs.overflowing_ranks").wait(PATIENCE_SECONDS) != 0
    error = read_error(job)
    assert error.kind == "non_finite", error.message
    assert re.search(r"Step 6: loss 0\.\d+, .*Rows of the batch: \[20, 21, 22, 23\]", error.message)
    assert len(metrics_of(tmp_path)) == 5
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]
    assert newest_checkpoint(tmp_path / "checkpoints", job.fingerprint)[1].step == 5


@pytest.mark.parametrize("name", SPLITTING)
def test_a_rank_without_memory_ends_the_run_with_the_batch_that_did_not_fit(stage, tmp_path, name):
    """The allocator of one rank fails for real; the other, left in a collective, reports nothing over it."""
    job = job_in(stage, tmp_path, SHARDINGS[name])
    assert start_ranks(job, 2, "tests.programs.starved_ranks").wait(PATIENCE_SECONDS) != 0
    error = read_error(job)
    assert error.kind == "oom", error.message
    assert re.search(r"Out of memory on a batch of 1 pairs, .*Lower train.tokens_per_forward", error.message)
    assert len(metrics_of(tmp_path)) == 1


@pytest.mark.parametrize(("name", "loss"), [("fsdp2", "dpo"), ("plain", "aot")])
def test_a_rank_whose_fit_check_finds_no_memory_ends_the_run_before_its_first_step(
    stage, tmp_path, monkeypatch, name, loss
):
    """The others compute on: what it says to them would be taken for a part of the weights, or for the scores of a loss
    that depends on all pairs."""
    monkeypatch.setenv(STARVED_IN, FIT_CHECK)
    job = stage.train_job(tmp_path, loss, processes=2, sharding=SHARDINGS[name])
    assert start_ranks(job, 2, "tests.programs.starved_ranks").wait(PATIENCE_SECONDS) != 0
    error = read_error(job)
    assert error.kind == "oom", error.message
    assert re.search(
        r"Out of memory on a batch of \d+ pairs, .*Lower train.tokens_per_forward", error.message
    )
    assert metrics_of(tmp_path) == []


@pytest.mark.parametrize("name", SPLITTING)
def test_asked_to_stop_it_writes_a_checkpoint(stage, tmp_path, name):
    """SIGTERM to the ranks, as the launcher sends it: to all but their leader."""
    job = job_in(stage, tmp_path, SHARDINGS[name])
    leader = start_ranks(job, 2, "tests.programs.slow_steps")
    wait_until((tmp_path / HELD).exists, "two steps", of=leader, pause=0.01)
    assert len(metrics_of(tmp_path)) >= 2
    stop_group(leader, grace_seconds=300)
    error = read_error(job)
    assert error.kind == "preempted", error.message
    done = len(metrics_of(tmp_path))
    assert f"a checkpoint of step {done} is written" in error.message
    assert newest_checkpoint(tmp_path / "checkpoints", job.fingerprint)[1].step == done
