"""A mixture of experts whose layers' stacked experts are shared out, each rank having read its own of the files."""

import pytest
import torch
from safetensors.torch import load_file

from tests.dpo_core.engine.test_sharded import SHARDINGS, SPLITTING
from tests.dpo_core.model.test_router import moe_stage  # noqa: F401
from tests.step_process import run_ranks
from tests.tiny_stage import run_here

pytestmark = pytest.mark.integration


def test_the_weights_are_those_of_one_process(moe_stage, tmp_path):  # noqa: F811
    settings = {"loss": "dpo", "global_pairs": 4, "max_steps": 2}
    one = run_here(moe_stage.train_job(tmp_path / "one", **settings))
    expected = load_file(one.weights_path / "model.safetensors")
    assert any(tensor.dim() == 3 for tensor in expected.values())
    for name in SPLITTING:
        job = moe_stage.train_job(tmp_path / name, processes=2, sharding=SHARDINGS[name], **settings)
        result = run_ranks(job)
        assert "rank 0 reads all" not in (job.out_dir / "log.txt").read_text()
        found = load_file(result.weights_path / "model.safetensors")
        assert found.keys() == expected.keys()
        for key, tensor in found.items():
            torch.testing.assert_close(tensor, expected[key], rtol=0, atol=2e-6, msg=key)
