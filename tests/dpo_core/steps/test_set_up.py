"""Before the first step: the probe of the largest microbatch, what the checks cost, SIGTERM, weights that are not read."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest
import torch

from dpo_core.contract.errors import OutOfMemory, Preempted
from dpo_core.contract.store import sha256_file
from dpo_core.data.order import forward_tokens
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.engine.plain import PlainEngine
from dpo_core.model.load import load_model
from dpo_core.training.stop_request import StopRequest
from tests.step_process import metrics_of
from tests.tiny_stage import run_here


def weights_hash(result) -> str:
    return sha256_file(result.weights_path / "model.safetensors")


def test_the_probe_runs_the_largest_microbatch_and_changes_nothing(stage, tmp_path, monkeypatch):
    probed = run_here(stage.train_job(tmp_path / "probed", "dpo", checkpoint_every=4))
    dataset = PairDataset.open(stage.data.path, "train")
    lengths = forward_tokens(dataset.lengths, dataset.prefix_lengths, probed.forward)
    assert lengths.max() <= probed.checks["fit_tokens"] <= 2 * lengths.max()
    assert 1 <= probed.checks["fit_pairs"] <= 2
    assert probed.checks["fit_peak_gib"] > 0
    again = run_here(
        stage.train_job(tmp_path / "probed", "dpo", checkpoint_every=4)
    )  # resumed from step 8, probed again
    assert again.resumed_from_step == 8
    monkeypatch.setattr("dpo_core.steps.train.check_fit", lambda trainer: {})
    assert (
        weights_hash(probed)
        == weights_hash(again)
        == weights_hash(run_here(stage.train_job(tmp_path / "not", "dpo")))
    )


def test_too_little_memory_for_the_largest_microbatch_ends_the_run_before_its_first_step(
    stage, tmp_path, monkeypatch
):
    calls = []

    def scores_without_memory(self, batch):
        calls.append(batch.row_B.tolist())
        torch.empty(1 << 50)  # a real failure of the allocator

    monkeypatch.setattr(PlainEngine, "scores", scores_without_memory)
    with pytest.raises(
        OutOfMemory, match=r"Out of memory on a batch of \d pairs.*Lower train.tokens_per_forward"
    ):
        run_here(stage.train_job(tmp_path, "dpo"))
    assert len(calls) == 1
    assert metrics_of(tmp_path) == []


def test_what_the_checks_cost_stands_in_the_result_and_in_the_first_line_of_each_start(stage, tmp_path):
    result = run_here(stage.train_job(tmp_path, "dpo", checkpoint_every=4))
    assert {"reference_cache_seconds", "layout_seconds", "guard_seconds", "fit_seconds"} < set(result.checks)
    assert 0 < result.checks["share_of_run"] < 1
    first = metrics_of(tmp_path)[0]
    assert first["checks/guard_largest_difference_per_token"] == result.guard["largest_difference_per_token"]
    assert 0 <= first["checks/layout_difference"] < 1e-4
    run_here(stage.train_job(tmp_path, "dpo", checkpoint_every=4))
    with_checks = [step["step"] for step in metrics_of(tmp_path) if "checks/fit_seconds" in step]
    assert with_checks == [1, 9]


@pytest.fixture
def stop():
    handler = signal.getsignal(signal.SIGTERM)
    yield StopRequest()
    signal.signal(signal.SIGTERM, handler)


def test_sigterm_during_set_up_ends_the_step_at_once(stop):
    stop.listen()
    with pytest.raises(Preempted, match="during set-up"):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_second_sigterm_leaves_the_end_that_the_first_asked_for_alone(stop):
    """What tracks a job's processes signals each of them, and the first passes it on: two within a millisecond."""
    stop.listen()
    with pytest.raises(Preempted):
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)  # no exception in the middle of writing down the first


def test_a_stop_that_a_library_swallowed_is_answered_when_set_up_is_over(stop):
    stop.listen()
    with contextlib.suppress(Exception):
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Preempted):
        stop.set_up_is_over()


def test_sigterm_after_set_up_waits_for_the_step(stop):
    stop.listen()
    stop.set_up_is_over()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.received


def test_a_model_whose_weights_are_not_read_is_the_model_in_all_else(stage):
    """What ranks other than 0 start from: the same parameters by name and shape, ties, buffers, settings."""
    read, unread = load_model(stage.checkpoint), load_model(stage.checkpoint, read_weights=False)
    shapes = [
        {name: parameter.shape for name, parameter in model.named_parameters()} for model in (read, unread)
    ]
    assert shapes[0] == shapes[1]
    assert unread.get_input_embeddings().weight is unread.get_output_embeddings().weight
    for (name, ours), (their_name, theirs) in zip(unread.named_buffers(), read.named_buffers(), strict=True):
        assert name == their_name
        assert torch.equal(ours, theirs)
    assert unread.config.to_dict() == read.config.to_dict()
    assert unread.generation_config.to_dict() == read.generation_config.to_dict()
    assert (unread.training, unread.dtype) == (read.training, read.dtype)


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["zero3", "fsdp2"])
def test_another_back_end_than_was_asked_for_is_refused(kind):
    """accelerate's state is one per process, so a second start keeps the first one's back end without a word."""
    script = f"""
from accelerate import Accelerator
from dpo_core.engine.distributed import start_accelerator
from dpo_core.contract.errors import ConfigError
from dpo_core.contract.jobs import Sharding
Accelerator(cpu=True)
try:
    start_accelerator(Sharding(kind={kind!r}))
except ConfigError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert f"compute.sharding is {kind} but accelerate started NO" in done.stdout, done.stderr[-2000:]
