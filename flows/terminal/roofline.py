"""Hours and cost of a training on cards, by a roofline; the formula in words is in docs/back-ends.md.

    products   a token and weight of the layers: 2 forward, 2 again with checkpointing (less what is kept), 4 backward
               (2 where weights are frozen); of the head 2, 2 again and 4 for each predicted token; attention 4 A L v of
               the same kinds, v the tokens that one sees on average
    compute    products / (0.62 of the card's peak) / 0.7, as 70 % of the time is in products
    exchange   bytes a weight and forward / the slower of link and network; overlapped, so the longer of both counts
    sums       with a tensor degree t: 6 (4 without checkpointing) a layer of each token's hidden state, 2 (t - 1) / t of its
               bytes each / the card's link; nothing else is computed meanwhile
    update     28 bytes a weight held / the card's memory

Measured on an H200: eight layers of 8B width, 16 pairs of 16,480 tokens, forward and backward 0.65 s; by this 0.67 s.
"""

import math
from dataclasses import dataclass

from dpo_core.contract.back_ends import BACK_ENDS
from dpo_core.contract.model_shape import ModelShape
from dpo_core.contract.step_memory import PREDICTED, StepMemory, arithmetic_of, gathers_in_half
from flows.settings.stage_config import StageConfig
from flows.terminal.cards import Card

OF_PEAK = 0.62  # what products of matrices reach
IN_PRODUCTS = 0.70  # of the time
UPDATE_BYTES = 28  # a weight: gradient, weight and moments read, weight and moments written
GATHERS, REDUCES = (
    2,
    4,
)  # where weights are shared out: times a weight is gathered a forward; bytes of its gradient
SUMMED = 8  # bytes a weight held and forward where there are replicas: the fp32 gradient, sent and received
SUMS = 4  # a layer of what processes compute together: attention and MLP, forward and backward
SUMS_AGAIN = 2  # in what checkpointing computes again
REDUCED = 8  # bytes a weight and step elsewhere: gradients, sent and received


@dataclass(frozen=True, slots=True)
class Speed:
    """What a training takes."""

    step_seconds: float
    forwards: int  # of a card in a step
    reference_seconds_a_pair: float  # of all cards together

    def seconds(self, num_steps: int, num_pairs: int) -> float:
        """Return those of the reference pass over ``num_pairs`` and of the steps."""
        return num_steps * self.step_seconds + num_pairs * self.reference_seconds_a_pair


def products_a_token(shape: ModelShape, pair_tokens: int, kinds: tuple[float, float]) -> float:
    """Return floating-point operations of a token. ``kinds``: those of a weight of layers and head."""
    of_layer, of_head = kinds
    layers = shape.num_layers * shape.linear_parameters
    visible = 0.3 * pair_tokens  # half of a side, which is 60 % of a pair's distinct tokens
    attention = 2 * shape.num_layers * shape.query_size * visible
    return of_layer * (layers + attention) + of_head * PREDICTED * shape.head_parameters


def sums_a_token(config: StageConfig, shape: ModelShape) -> float:
    """Return bytes that a process sends of a token for the sums over those that compute it together."""
    together, train = config.compute.tensor_degree, config.train
    sums = shape.num_layers * (SUMS + SUMS_AGAIN * train.gradient_checkpointing)
    each = shape.hidden_size * (4 if train.precision == "fp32" else 2)
    return sums * each * 2 * (together - 1) / together


def recomputed(config: StageConfig, shape: ModelShape, tokens: float) -> float:
    """Return which part of the layers' products a forward of so many tokens computes again."""
    train = config.train
    if not train.gradient_checkpointing:
        return 0.0
    arithmetic = arithmetic_of(config.adapter, train.precision, config.compute.sharding)
    here = shape.shared_by(config.compute.tensor_degree)
    products = StepMemory(here, arithmetic, is_checkpointed=True).products(math.ceil(tokens))
    return 1 - min(1.0, train.activation_budget_gib * 2**30 / products)


def speed(
    config: StageConfig, shape: ModelShape, card: Card, nodes: int, tokens: int, pair_tokens: int
) -> Speed:
    """Return the speed with forwards of at most ``tokens`` and pairs of ``pair_tokens`` distinct tokens on average."""
    ranks, together, train = config.compute.num_processes, config.compute.tensor_degree, config.train
    share = train.global_batch_pairs * pair_tokens * together / ranks  # of those that compute together
    forwards = max(1, math.ceil(share / tokens))
    again = 2 * recomputed(config, shape, share / forwards)
    slopes = 4 if config.adapter.kind == "none" else 2
    rate = card.flops * OF_PEAK * IN_PRODUCTS / (2 if train.precision == "fp32" else 1)
    of_token = products_a_token(shape, pair_tokens, (2 + again + slopes, 4 + slopes)) / rate / together
    of_token += sums_a_token(config, shape) / card.link
    shards = config.compute.num_shards
    between = card.link if nodes == 1 else min(card.link, card.network)
    within = card.link if shards <= ranks // nodes else between
    ways = shards // together  # FSDP2's
    crossing = shape.num_parameters / together * (ways - 1) / ways / within
    replicas = ranks // shards
    summed = SUMMED * shape.num_parameters / shards * (replicas - 1) / replicas / between  # over replicas
    compute = share * of_token
    splits = BACK_ENDS[config.compute.sharding].splits_weights
    gathered = GATHERS * (2 if gathers_in_half(train.precision, config.compute.sharding) else 4)
    if config.adapter.kind != "none":
        exchange = gathered * crossing * forwards if splits else 0.0
    else:
        exchange = ((gathered + REDUCES) * crossing + summed) * forwards if splits else REDUCED * crossing
    held = shape.num_parameters / (shards if config.compute.sharding != "none" else 1)
    update = UPDATE_BYTES * held / card.memory if config.adapter.kind == "none" else 0.0
    scoring = products_a_token(shape, pair_tokens, (2, 2)) / rate * pair_tokens / ranks
    needs_reference = 1 if config.objective.needs_reference else 0
    return Speed(max(compute, exchange) + update, forwards, needs_reference * scoring)
