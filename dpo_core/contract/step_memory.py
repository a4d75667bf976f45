"""Memory that a forward and backward take beside weights, gradients and moments, in bytes, from a model's shape. Torch-free.

A decoder layer's activations are linear in four sizes: hidden H, MLP width I, queries A (heads x head size), keys K. The
coefficients below are bytes a token and layer, fitted to what FakeTensor counts of this program's own forward and backward
(`tests/dpo_core/contract/test_step_memory.py` compares them at 8B and 70B shape); the weights of a layer's linears come on
top where autocast keeps a cast of each for the backward.

    saved   26 H + 8 I + 4 A + 4.8 K, and 2 B a weight       autocast: the residual stream is fp32, q, k, v, o and MLP bf16
            16 H + 8 I + 4 A + 4.8 K                         bf16 weights: the residual stream is bf16, too
    kept    4 H (2 H)                                        with gradient checkpointing: a layer's input alone
    work    what the backward of one layer needs beyond that, its forward computed again

The vocabulary head holds a chunk of logits, its weight in bf16, and the sum of the weight's gradient in fp32.
"""

from dataclasses import dataclass
from typing import Literal

from dpo_core.contract.back_ends import BACK_ENDS, ShardingKind
from dpo_core.contract.config import AdapterConfig, Precision
from dpo_core.contract.model_shape import ModelShape

PREDICTED = 0.8  # of a pair's distinct tokens, as in Tulu 3's mixture: prompts are not trained on
CARD_CHUNK_LOGITS = 1 << 28  # logits held at once on a card, where small products waste it
SUM_BYTES = 4  # the head's gradient is summed over chunks in fp32
Arithmetic = Literal["autocast", "bf16_weights", "fp32", "adapter", "bf16_adapter"]


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Bytes a token and layer for each of H, I, A, K; ``*_weights`` bytes a weight of a layer's linears."""

    saved: tuple[float, float, float, float]
    saved_weights: float
    saved_norms: tuple[float, float, float, float]  # added to ``saved`` where queries and keys are normed
    work_norms: tuple[float, float, float, float]  # and to ``work``
    kept: float  # of H
    work: tuple[float, float, float, float]
    work_weights: float
    ends: float  # of H: the last hidden states, normed, and those that predict, beside all layers
    head_weight: float  # bytes a weight of the head that its use in products adds
    logit: float  # bytes of one as the product gives it; kept for the backward where one chunk holds all
    exact_logit: float  # bytes that its log-probability takes on top, for a moment
    weight: float  # bytes of a weight of the head, and so of its gradient


OF: dict[Arithmetic, Coefficients] = {
    "autocast": Coefficients(
        saved=(26, 8, 4.06, 4.8),
        saved_weights=2,
        saved_norms=(0, 0, 8, 8),
        work_norms=(0, 0, 19, 9),
        kept=4,
        work=(18, 11.1, 2.6, 3.7),
        work_weights=2,
        ends=11.5,
        head_weight=2,
        logit=2,
        exact_logit=8,
        weight=4,
    ),
    "bf16_weights": Coefficients(
        saved=(16, 8, 4.06, 4.8),
        saved_weights=0,
        saved_norms=(4, 0, 8, 8),
        work_norms=(0, 0, 14, 9),
        kept=2,
        work=(17, 10.9, 1.7, 3.8),
        work_weights=0.1,
        ends=7.7,
        head_weight=0,
        logit=2,
        exact_logit=8,
        weight=2,
    ),
    "adapter": Coefficients(  # beside frozen weights in bf16, under autocast
        saved=(18, 8, 4.06, 4.8),
        saved_weights=0,
        saved_norms=(0, 0, 8, 8),
        work_norms=(0, 0, 19, 9),
        kept=4,
        work=(20.6, 15.1, 2.6, 3.7),
        work_weights=0,
        ends=7.5,
        head_weight=0,
        logit=2,
        exact_logit=8,
        weight=2,
    ),
    "bf16_adapter": Coefficients(  # beside frozen weights in bf16, without autocast
        saved=(10, 8, 4.06, 4.8),
        saved_weights=0,
        saved_norms=(2, 0, 4, 4),
        work_norms=(0, 0, 8, 5),
        kept=2,
        work=(17, 10.9, 1.7, 3.8),
        work_weights=0.1,
        ends=5.7,
        head_weight=0,
        logit=2,
        exact_logit=8,
        weight=2,
    ),
    "fp32": Coefficients(
        saved=(24, 16, 8.1, 9.6),
        saved_weights=0,
        saved_norms=(0, 0, 12, 12),
        work_norms=(0, 0, 20, 12),
        kept=4,
        work=(12, 24, 6, 8),
        work_weights=0.1,
        ends=12,
        head_weight=0,
        logit=4,
        exact_logit=4,
        weight=4,
    ),
}


def arithmetic_of(adapter: AdapterConfig, precision: Precision, sharding: ShardingKind) -> Arithmetic:
    """Return what numbers a training computes with."""
    if precision == "fp32":
        return "fp32"
    adapted = holds_frozen_in_half(adapter, precision)
    if precision == "bf16_pure" or sharding == "fsdp2":
        return "bf16_adapter" if adapted else "bf16_weights"
    return "adapter" if adapted else "autocast"


def holds_frozen_in_half(adapter: AdapterConfig, precision: Precision) -> bool:
    """Return whether the weights beside an adapter are held in bf16."""
    return adapter.kind == "lora" and precision == "bf16"


def gathers_in_half(precision: Precision, sharding: ShardingKind) -> bool:
    """Return whether the weights that a process gathers from the others are sent as bf16."""
    return precision == "bf16" and BACK_ENDS[sharding].splits_weights


def _per_token(each: tuple[float, ...], norms: tuple[float, ...], shape: ModelShape) -> float:
    sizes = (shape.hidden_size, shape.intermediate_size, shape.query_size, shape.key_size)
    each = tuple(map(sum, zip(each, norms, strict=True))) if shape.norms_queries else each
    return sum(value * size for value, size in zip(each, sizes, strict=True))


@dataclass(frozen=True, slots=True)
class StepMemory:
    """What a forward and backward of some tokens hold."""

    shape: ModelShape
    arithmetic: Arithmetic
    is_checkpointed: bool
    trains_all: bool = True  # an adapter's base gets no gradients
    budget: int = 0  # bytes of products that are kept although it is checkpointed

    @property
    def _of(self) -> Coefficients:
        return OF[self.arithmetic]

    def activations(self, tokens: int) -> int:
        """Return bytes that are kept from the forward for the backward."""
        shape, of = self.shape, self._of
        if self.is_checkpointed:
            layer = of.kept * shape.hidden_size * tokens
            layer += min(self.budget, self.products(tokens)) / shape.num_layers
        else:
            layer = _per_token(of.saved, of.saved_norms, shape) * tokens
            layer += of.saved_weights * shape.linear_parameters
        logits = self._logits(tokens)
        kept = of.logit * logits if logits <= CARD_CHUNK_LOGITS else 0.0
        return round(shape.num_layers * layer + of.ends * shape.hidden_size * tokens + kept)

    def products(self, tokens: int) -> int:
        """Return bytes of all outputs of matrix products and of attention in the layers."""
        shape = self.shape
        width = 2 * (shape.hidden_size + shape.query_size + shape.key_size + shape.intermediate_size)
        return round(self._of.logit * shape.num_layers * width * tokens)

    def layer_work(self, tokens: int) -> int:
        """Return the most that a layer's backward needs beyond the activations that are kept."""
        if not self.is_checkpointed:
            return 0  # less than what the layers before have given back
        shape, of = self.shape, self._of
        return round(
            _per_token(of.work, of.work_norms, shape) * tokens + of.work_weights * shape.linear_parameters
        )

    def head_work(self, tokens: int) -> int:
        """Return the most that the vocabulary head needs beyond them."""
        of, weights, logits = self._of, self.shape.head_parameters, self._logits(tokens)
        if logits <= CARD_CHUNK_LOGITS:
            forward = of.exact_logit * logits
            gradient = of.logit + (of.weight if of.weight > of.logit else 0)
            backward = of.logit * logits + (gradient * weights if self.trains_all else 0)
        else:
            forward = (of.logit + of.exact_logit) * CARD_CHUNK_LOGITS
            product = of.logit if of.logit < SUM_BYTES else 0
            backward = of.logit * CARD_CHUNK_LOGITS
            backward += (SUM_BYTES + product) * weights if self.trains_all else backward
        return round(of.head_weight * weights + max(forward, backward))

    def forward_alone(self, tokens: int) -> int:
        """Return the most that a forward without gradients holds: the residual stream, and one layer's work or a chunk of
        logits."""
        shape, of = self.shape, self._of
        # The MLP: its input, what is added to, its output; gate, up and their product.
        layer = 3 * (of.kept * shape.hidden_size + of.logit * shape.intermediate_size) * tokens
        head = (of.logit + of.exact_logit) * min(self._logits(tokens), CARD_CHUNK_LOGITS)
        head += of.ends * shape.hidden_size * tokens + of.head_weight * shape.head_parameters
        return round(of.kept * shape.hidden_size * tokens + max(layer, head))

    def keys_and_values(self, tokens: int) -> int:
        """Return bytes of the cache of so many tokens: keys in the residual stream's numbers, values in the products'."""
        return round((self._of.kept + self._of.logit) * self.shape.key_size * self.shape.num_layers * tokens)

    def _logits(self, tokens: int) -> float:
        return PREDICTED * tokens * self.shape.vocab_size

    def beside_state(self, tokens: int) -> int:
        """Return the most that a forward and backward of ``tokens`` hold at once."""
        return self.activations(tokens) + max(self.layer_work(tokens), self.head_work(tokens))

    def tokens_within(self, num_bytes: int, most: int) -> int:
        """Return the largest number of tokens, at most ``most``, whose forward and backward fit; 0 if none does."""
        fewest = 0
        while fewest < most:
            middle = (fewest + most + 1) // 2
            if self.beside_state(middle) <= num_bytes:
                fewest = middle
            else:
                most = middle - 1
        return fewest
