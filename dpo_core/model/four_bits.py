"""Matrices as 4-bit weights hold them (QLoRA, arXiv 2305.14314), one at a time: what an adapter beside them was trained on.

An export adds the adapter to these values. A whole model in 4 bits, made float32 again, takes 4 bytes a weight: 32 GB of
8B, which a card of 24 GB that trained it does not have.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from dpo_core.contract.config import AdapterConfig, OptimConfig
from dpo_core.contract.cuda8bit import check_cuda8bit

QUANT_TYPE, DOUBLE_QUANT = "nf4", True  # normal floats of 4 bits, the scales quantised as well


def held_in_four_bits(model: PreTrainedModel) -> dict[str, bool]:
    """Return the names of the weights that transformers holds in 4 bits when it loads such a model so, and whether each is
    stored transposed. ``model``: with full weights, or without values."""
    exact = model._keep_in_fp32_modules
    kept = HfQuantizer.get_modules_to_not_convert(model, None, None if exact is None else list(exact))
    return {
        f"{name}.weight": isinstance(module, Conv1D)
        for name, module in model.named_modules()
        if (isinstance(module, Conv1D) or type(module) is nn.Linear) and should_convert_module(name, kept)
    }


def rounding(model: PreTrainedModel) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return, by name, what turns a float32 weight into the values that its 4 bits stand for. Raises ``ConfigError`` without
    bitsandbytes.

    On the first card where there is one, so that the values are the training's to the bit; a CPU's may differ from them in
    the last bit of a scale.
    """
    check_cuda8bit(AdapterConfig(kind="qlora"), OptimConfig(), num_gpus=1)  # no card is needed here
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        name: partial(_rounded, device=device, transposed=transposed)
        for name, transposed in held_in_four_bits(model).items()
    }


def _rounded(weight: Tensor, device: torch.device, transposed: bool) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit  # of the extra cuda8bit: not there as a rule
    from bitsandbytes.nn import Params4bit

    matrix = weight.T if transposed else weight  # as transformers turns it before it is quantised
    held = Params4bit(
        matrix.contiguous(), requires_grad=False, quant_type=QUANT_TYPE, compress_statistics=DOUBLE_QUANT
    ).to(device)
    values = dequantize_4bit(held.data, held.quant_state).float().cpu()
    return values.T.contiguous() if transposed else values
