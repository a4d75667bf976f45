"""Mixtures of experts whose layers' stacked experts are shared out, each rank having read its own of the files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GptOssConfig

from tests.dpo_core.engine.test_sharded import SHARDINGS, SPLITTING
from tests.dpo_core.model.test_router import moe_stage  # noqa: F401
from tests.step_process import run_ranks
from tests.tiny_architectures import PACKED, tiny
from tests.tiny_models import make_tokenizer
from tests.tiny_stage import TinyStage, checkpoint_ref, run_here

pytestmark = pytest.mark.integration


def assert_trained_as_by_one(stage: TinyStage, folder: Path, num_ranks: dict[str, int], **settings) -> None:
    """Two steps by each back end, on so many ranks."""
    settings |= {"global_pairs": 4, "per_device": 1, "max_steps": 2}
    one = run_here(stage.train_job(folder / "one", **settings))
    expected = load_file(one.weights_path / "model.safetensors")
    assert any(tensor.dim() == 3 for tensor in expected.values())
    for name, ranks in num_ranks.items():
        job = stage.train_job(folder / name, processes=ranks, sharding=SHARDINGS[name], **settings)
        result = run_ranks(job, ranks)
        assert "rank 0 reads all" not in (job.out_dir / "log.txt").read_text()
        found = load_file(result.weights_path / "model.safetensors")
        assert found.keys() == expected.keys()
        for key, tensor in found.items():
            torch.testing.assert_close(tensor, expected[key], rtol=0, atol=2e-6, msg=key)


def test_experts_that_files_hold_one_by_one(moe_stage, tmp_path):  # noqa: F811
    assert_trained_as_by_one(moe_stage, tmp_path, dict.fromkeys(SPLITTING, 2), loss="dpo")


def test_experts_that_files_hold_stacked_and_turned_round(moe_stage, tmp_path):  # noqa: F811
    """As gpt-oss has them, [experts, in, out] with biases, in files and in memory."""
    tokenizer = make_tokenizer()
    same = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    config = GptOssConfig(
        **PACKED["gpt_oss"].to_dict() | same | {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    )
    tiny(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    checkpoint = checkpoint_ref(tmp_path / "model")
    assert_trained_as_by_one(
        moe_stage, tmp_path, {"zero3": 2, "fsdp2": 4}, loss="simpo", checkpoint=checkpoint
    )
