"""Kernels of another machine are refused with what to do instead, before anything is fetched or mixed."""

import pytest
import torch
from pydantic import ValidationError

from dpo_core.contract.config import TrainConfig
from dpo_core.contract.errors import ConfigError
from dpo_core.contract.gpu_attention import check_gpu_attention
from dpo_core.model.forward import PairScorer, choose_layout
from tests.dpo_core.model.test_attention import some_pairs
from tests.tiny_architectures import PACKED, PADDED_ONLY, tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize("kernel", ["flex_attention", "flash_attention_2"])
def test_a_kernel_for_gpus_is_refused_without_one(kernel):
    with pytest.raises(
        ConfigError, match=rf"train.attention {kernel} needs a CUDA GPU.*Use train.attention sdpa"
    ):
        check_gpu_attention(kernel, num_gpus=0)
    with pytest.raises(ConfigError, match="needs a CUDA GPU"):
        choose_layout(PairScorer(tiny(PACKED["llama"]), "fp32"), some_pairs(), "packed", CPU, kernel)


def test_flash_attention_asks_for_its_package_where_it_can_be_looked_at():
    with pytest.raises(ConfigError, match=r"package flash-attn.*pip install flash-attn"):
        check_gpu_attention("flash_attention_2", num_gpus=1)
    check_gpu_attention("flash_attention_2", num_gpus=1, package_is_here=False)  # a container brings its own
    for kernel in ("sdpa", "eager"):
        check_gpu_attention(kernel, num_gpus=0)
    check_gpu_attention("flex_attention", num_gpus=1)


def test_flash_attention_in_fp32_is_refused_with_the_setting_to_change():
    with pytest.raises(ValidationError, match=r"set train\.precision to bf16"):
        TrainConfig(attention="flash_attention_2", precision="fp32")
    assert TrainConfig(attention="flash_attention_2", precision="bf16").attention == "flash_attention_2"


def test_eager_is_set_where_asked_and_packs(caplog):
    scorer = PairScorer(tiny(PACKED["llama"]), "fp32")
    assert choose_layout(scorer, some_pairs(), "packed", CPU, "eager") == "packed"
    assert scorer.model.config._attn_implementation == "eager_pairwise"


def test_a_model_without_the_kernel_says_so():
    scorer = PairScorer(tiny(PADDED_ONLY["falcon_alibi"][0]), "fp32")
    with pytest.raises(ConfigError, match=r"FalconForCausalLM, whose attention cannot be replaced"):
        choose_layout(scorer, some_pairs(), "packed", CPU, "eager")
