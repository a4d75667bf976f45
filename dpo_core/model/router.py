"""The load-balancing loss of mixture-of-experts routers (Switch Transformer, arXiv 2101.03961, eqs. 4 to 6).

Computed by the architecture's own function in transformers, over the tokens of one forward, padding left out: E * sum over
experts of (share of tokens sent there) * (mean routing probability), all layers together; top_k when balanced. A prompt
that chosen and rejected share is one set of tokens and counts once (in the padded layout: twice, as transformers would).

It is a product of means over a forward, so it is no sum over pairs. A step's value is the mean over its microbatches, on
all ranks, each weighted by its tokens.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from dpo_core.contract.errors import ConfigError
from dpo_core.model.attention import text_config

FUNCTION = "load_balancing_loss_func"


@dataclass(frozen=True, slots=True)
class RouterLoss:
    """``call(router logits per layer, real tokens [R, T])`` -> float32 scalar, without its weight."""

    function: Callable[..., Tensor]
    num_experts: int
    experts_per_token: int
    weight: float

    def __call__(self, logits_by_layer: tuple[Tensor, ...], real_RT: Tensor) -> Tensor:
        exact = tuple(logits.float() for logits in logits_by_layer)  # bf16 where weights are
        return self.function(exact, self.num_experts, self.experts_per_token, real_RT)


def own_weight(model: PreTrainedModel) -> float:
    """Return the weight that the model's config states, 0 for a dense model."""
    return float(getattr(text_config(model), "router_aux_loss_coef", 0.0) or 0.0)


def router_loss_of(model: PreTrainedModel, weight: float | None) -> RouterLoss | None:
    """Return the model's router loss with ``weight`` or, if that is None, the model's own weight; None where either is
    nothing.

    Raises ``ConfigError`` for a weight that the model has no use for.
    """
    used = own_weight(model) if weight is None else weight
    function = getattr(sys.modules[type(model).__module__], FUNCTION, None)
    num_experts, per_token = (getattr(model, name, None) for name in ("num_experts", "num_experts_per_tok"))
    if not used:
        return None
    if (
        function is None
        or num_experts is None
        or per_token is None
        or not hasattr(text_config(model), "output_router_logits")
    ):
        if weight is None:
            return None
        raise ConfigError(
            f"train.router_aux_loss_weight is {weight:g}, but {type(model).__name__} is no "
            "mixture-of-experts model with a load-balancing loss in transformers. Leave it empty."
        )
    return RouterLoss(function, num_experts, per_token, used)
