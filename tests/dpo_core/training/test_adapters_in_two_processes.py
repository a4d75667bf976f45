"""An adapter and a router's loss on two processes, with weights whole or shared out, against one process."""

import pytest
import torch
from safetensors.torch import load_file

from dpo_core.contract.jobs import Sharding
from dpo_core.contract.results import RESULT_FILE
from tests.dpo_core.model.test_adapter import LORA, lora_job
from tests.dpo_core.model.test_router import moe_stage  # noqa: F401
from tests.step_process import metrics_of, run_ranks
from tests.tiny_stage import run_here

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def alone(stage, tmp_path_factory):
    return run_here(lora_job(stage, tmp_path_factory.mktemp("alone")))


@pytest.mark.parametrize("kind", ["none", "zero3", "fsdp2"])
def test_an_adapter_is_trained_as_by_one_process_and_resumed(stage, alone, tmp_path, kind):
    """Measured: weights 2e-6 apart at most (ZeRO-3), losses 1e-6."""
    job = lora_job(stage, tmp_path, processes=2, checkpoint_every=5, sharding=Sharding(kind=kind))
    result = run_ranks(job)
    expected = load_file(alone.weights_path / "model.safetensors")
    tensors = load_file(result.weights_path / "model.safetensors")
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)
    ours, theirs = ([step["loss"] for step in metrics_of(run.metrics_path.parent)] for run in (result, alone))
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert (result.trained_parameters, result.all_parameters) == (
        alone.trained_parameters,
        alone.all_parameters,
    )
    assert result.base_check["largest_difference_per_token"] < 1e-5
    (tmp_path / RESULT_FILE).unlink()  # go on from the checkpoint of step 15
    again = run_ranks(job)
    assert again.resumed_from_step == 15
    assert again.weights_fingerprint == result.weights_fingerprint


def test_routers_are_balanced_over_all_ranks(moe_stage, tmp_path):  # noqa: F811
    """Pair by pair the microbatches are the same however they are dealt, so the token-weighted mean is, too."""
    settings = {"loss": "dpo", "per_device": 1, "router_aux_loss_weight": 0.5, "adapter": LORA}
    one = run_here(moe_stage.train_job(tmp_path / "one", **settings))
    two = run_ranks(moe_stage.train_job(tmp_path / "two", processes=2, **settings))
    for name in ("router_aux_loss", "loss", "grad_norm"):
        ours, theirs = ([step[name] for step in metrics_of(run.metrics_path.parent)] for run in (two, one))
        assert ours == pytest.approx(theirs, rel=1e-4), name
