"""``train.float8``: matrix products in float8, and where that cannot be. Torch-free, so that a plan says it, too."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.olmo_core import Implementation
from dpo_core.contract.section import NotContentAt, NotContentWhere

Float8Recipe = Literal["none", "rowwise", "rowwise_with_gw_hp"]
"""Recipes by the names of torchao. Its third, tensorwise, has one scale for all tokens of a forward."""

Float8 = Annotated[
    Float8Recipe,
    NotContentAt("none"),
    Field(
        description="Matrix products of layers in float8, as OLMo-core has torchao compute them: rowwise, or "
        "rowwise_with_gw_hp (gradients of weights stay bf16). For cards from Ada and Hopper on, with implementation "
        "olmo_core, precision bf16 and compute.sharding fsdp2; reference and evaluation likewise. Checkpoints are the same."
    ),
]
PARTS_OF = 16  # a product's sizes, for a card's float8 units
FIRST_CAPABILITY = (8, 9)  # Ada


class ModelCode(NamedTuple):
    """Which code computes a model, and what its products are computed in."""

    implementation: Implementation = "transformers"
    float8: Float8Recipe = "none"

    @classmethod
    def of(cls, how: Any) -> "ModelCode":
        """Return what a group of settings says, the training's or a scoring job's."""
        return cls(how.implementation, how.float8)


TRANSFORMERS = ModelCode()
# Marks the layout of rows: packed and padded ones round apart there, by up to 0.07 nats a token.
NOT_CONTENT_BUT_IN_FLOAT8 = NotContentWhere(lambda how: bool(how.float8 == "none"))


def why_not_float8(train: Any) -> str | None:
    """Return what of the training's settings does not go with ``train.float8``, and what to do; None if all do."""
    if train.float8 == "none":
        return None
    if train.implementation != "olmo_core":
        return (
            "train.float8 is for products of OLMo-core's layers. Set train.implementation to olmo_core, or train.float8 to "
            "none"
        )
    if train.precision != "bf16":
        return (
            "train.float8 rounds what is bf16 already. Set train.precision to bf16, or train.float8 to none"
        )
    if train.compile_regions:
        return (
            "train.float8 was never tried with train.compile_regions, which would compile its casts. Set "
            "train.compile_regions to false, or train.float8 to none"
        )
    return None


def check_float8(config: Mapping[str, Any], name: str, recipe: Float8Recipe) -> None:
    """Raise ``ConfigError`` for a model, by the content of its config.json, of whose matrices some could not be multiplied
    in float8: they would be left in bf16 without a word."""
    if recipe == "none":
        return
    heads = config.get("num_attention_heads") or 1
    head = config.get("head_dim") or config.get("hidden_size", 0) // heads
    sizes = {
        "hidden_size": config.get("hidden_size", 0),
        "intermediate_size": config.get("intermediate_size", 0),
        "num_attention_heads x head_dim": heads * head,
        "num_key_value_heads x head_dim": (config.get("num_key_value_heads") or heads) * head,
    }
    if odd := next((size for size in sizes if sizes[size] % PARTS_OF), None):
        raise ConfigError(
            f"train.float8 {recipe} does not go with {name}: its {odd} is {sizes[odd]}, and float8 is for matrices whose "
            f"sizes are multiples of {PARTS_OF}.",
            "Set train.float8 to none.",
        )


def check_float8_card(capability: tuple[int, int], card: str) -> None:
    """Raise ``ConfigError`` for a card without float8 units, by its CUDA compute capability."""
    if capability < FIRST_CAPABILITY:
        raise ConfigError(
            f"train.float8 needs a card of compute capability {FIRST_CAPABILITY[0]}.{FIRST_CAPABILITY[1]} or later (Ada, "
            f"Hopper, Blackwell), and {card} has {capability[0]}.{capability[1]}.",
            "Set train.float8 to none, or run it on such a card.",
        )
