"""Matrix products of OLMo-core's Transformer in float8, by OLMo-core's own configuration of torchao (``train.float8``).

Weights stay what they are, under their names: a product casts what goes into it, of activations each token with a scale of
its own, of weights each output. So what a token gives does not depend on the rows beside it, as it would with one scale for
a whole tensor. Imported where a run asks for it alone.
"""

import torch
from olmo_core.config import DType
from olmo_core.float8 import AOFloat8LinearConfig, AOFloat8LinearRecipe, Float8Config
from olmo_core.float8.ao import AOCastConfig, AOScalingGranularity
from torch import Tensor, nn
from torchao.float8.float8_linear import Float8Linear, matmul_with_hp_or_float8_args

from dpo_core.contract.float8 import Float8Recipe
from dpo_core.model.olmo_core import Float8Switch, OlmoCoreModel


class HalvedFirst(Float8Linear):
    """torchao's layer, which casts bf16 weights whoever holds them, and none where the model's switch is off.

    Its own casts fp32 weights to float8 at once and the bf16 ones that FSDP2 gathers, or a reference pass holds, once more:
    other numbers. And it asks for the autocast of cards alone.
    """

    switch: Float8Switch

    @classmethod
    def take(cls, stock: Float8Linear, switch: Float8Switch) -> None:
        """Make one of torchao's, in place."""
        stock.__class__, stock.switch = cls, switch

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output of hidden states [R, T, inputs]."""
        device, weight = input.device.type, self.weight
        if not self.switch.is_on:
            return nn.functional.linear(input, weight)
        if torch.is_autocast_enabled(device):
            half = torch.get_autocast_dtype(device)
            input, weight = input.to(half), weight.to(half)
        return matmul_with_hp_or_float8_args.apply(input, weight.t(), self.linear_mm_config, self.config)


def use_float8(model: OlmoCoreModel, recipe: Float8Recipe) -> None:
    """Have products of layers computed in float8, in place; the head's stays as it is. Before weights are shared out."""
    model.transformer.apply_fp8(_config(recipe))
    model.float8 = Float8Switch()
    for module in model.modules():
        if type(module) is Float8Linear:
            HalvedFirst.take(module, model.float8)


def _config(recipe: Float8Recipe) -> Float8Config:
    if recipe != "rowwise":
        return Float8Config(ao_recipe=AOFloat8LinearRecipe(recipe))
    cast = AOCastConfig(scaling_granularity=AOScalingGranularity.axiswise, target_dtype=DType.float8_e4m3fn)
    return Float8Config(
        ao=AOFloat8LinearConfig(
            cast_config_input=cast,
            cast_config_weight=cast,
            cast_config_grad_output=cast,
            round_scales_to_power_of_2=True,
            # Gradients of weights are sums over tokens, of which a card takes multiples of 16.
            pad_inner_dim=True,
        )
    )
