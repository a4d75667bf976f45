"""Each family that OLMo-core is used for: trained on two processes as transformers trains it, written as it came."""

import copy

import pytest
import torch

from dpo_core.contract.jobs import Sharding
from dpo_core.model.load import load_model
from tests.dpo_core.engine.test_sharded import exported_and_trained
from tests.dpo_core.engine.test_tensor_parallel import assert_same_short_run, short, stage_of
from tests.olmo_core.test_models import MODELS
from tests.olmo_core.test_runs import on_olmo_core
from tests.step_process import run_ranks
from tests.tiny_stage import run_here

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("name", ["olmo2", "olmo3 with YaRN", "llama 3", "qwen3 with windows"])
def test_it_is_trained_on_two_processes_as_by_transformers_and_written_as_it_came(tmp_path, name):
    """fp32. The export has the names, sizes and settings of the checkpoint, which stock transformers loads, and the
    values that the training ended with, bit for bit."""
    stage = stage_of(copy.deepcopy(MODELS[name]), tmp_path)
    alone = run_here(short(stage, tmp_path / "alone"))
    job = short(stage, tmp_path / "two", processes=2, sharding=Sharding(kind="fsdp2"))
    result = run_ranks(on_olmo_core(job))
    assert result.forward == alone.forward == "packed"
    assert_same_short_run(result, alone)
    exported, trained = exported_and_trained(result, stage.checkpoint, tmp_path / "export")
    before = load_model(stage.checkpoint)
    assert described(exported) == described(before)
    assert exported.state_dict().keys() == before.state_dict().keys()
    for key, parameter in exported.named_parameters():
        assert torch.equal(parameter, trained[key]), key
        assert not torch.equal(parameter, before.get_parameter(key)), key


def described(model) -> dict:
    return {key: value for key, value in model.config.to_dict().items() if not key.startswith("_")}
