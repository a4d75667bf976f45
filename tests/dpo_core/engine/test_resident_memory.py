"""Host memory of each of two ranks: no more than its share of the weights and one tensor, while they are read, written and
exported. The same at a billion weights: ``benchmarks.checkpoints``."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.step_process import ONE_THREAD
from tests.tiny_models import make_model
from tests.waiting import PATIENCE_SECONDS
from tests.warm.started import python_path

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc"),
]

LARGE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 10}
NOISE = 0.15  # of all weights: buffers of reads and exchanges, the interpreter's own


@pytest.mark.parametrize("sharding", ["fsdp2", "zero3"])
def test_no_rank_holds_more_than_its_share_and_one_tensor(tmp_path, sharding):
    """40 million weights, 160 MB in fp32: read whole by any rank, they would be twice its bound."""
    make_model(tmp_path / "small")
    file = make_model(tmp_path / "sft", **LARGE) / "model.safetensors"
    save_file(
        {name: tensor.to(torch.bfloat16) for name, tensor in load_file(file).items()}, file, {"format": "pt"}
    )
    environment = (
        os.environ | ONE_THREAD | {"PYTHONPATH": python_path(), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    )
    argv = [sys.executable, "-m", "tests.programs.resident_ranks", str(tmp_path), sharding]
    ranks = [
        subprocess.Popen(argv, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [rank.wait(PATIENCE_SECONDS) for rank in ranks] == [0, 0]
    for rank in range(2):
        found = json.loads((tmp_path / f"resident-{rank}.json").read_text())
        noise = NOISE * found["all"]
        assert 0.49 * found["all"] < found["share"] < 0.51 * found["all"]
        assert found["largest"] < noise
        assert 0.9 * found["share"] < found["reading"] < found["share"] + found["largest"] + noise, found
        assert found["writing"] < found["largest"] + noise, found
        assert rank or found["exporting"] < found["largest"] + noise, found
