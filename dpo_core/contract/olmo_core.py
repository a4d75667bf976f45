"""What ``train.implementation: olmo_core`` can do, as far as a checkpoint's config.json tells. Torch-free, so that a plan
says it, too."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.section import NotContentWhere


def _rounds_alike(section: Any) -> bool:
    """In fp32 all code that computes a model gives the same numbers; in bf16 each rounds in its own way, by up to 1e-2 nats
    a token. ``section``: has precision and implementation."""
    return section.precision == "fp32" or section.implementation == "transformers"


Implementation = Literal["transformers", "olmo_core"]
ComputedBy = Annotated[Implementation, NotContentWhere(_rounds_alike)]
"""The field beside a precision that says which code computes the model."""

MODELS = {"olmo2": "OLMo 2", "olmo3": "OLMo 3", "llama": "Llama", "qwen3": "Qwen 3"}
ROPES = ("default", "linear", "llama3", "yarn")
# Of YaRN, what OLMo-core computes always so and config.json may say otherwise.
USUAL_YARN = {"truncate": (None, True), "mscale": (None,), "mscale_all_dim": (None,)}
SWITCHED_OFF = ("attention_bias", "mlp_bias", "clip_qkv", "quantization_config")


def check_olmo_core(config: Mapping[str, Any], name: str) -> None:
    """Raise ``ConfigError`` for a model, by the content of its config.json, that cannot be trained on OLMo-core. ``name``:
    what the message calls it."""
    if reason := why_not_olmo_core(config):
        raise ConfigError(
            f"train.implementation olmo_core cannot train {name}: {reason}.",
            f"OLMo-core is used for {', '.join(MODELS.values())}. Set train.implementation to transformers.",
        )


def why_not_olmo_core(config: Mapping[str, Any]) -> str | None:
    """Return what OLMo-core's Transformer cannot express of a model; None if nothing is known."""
    kind = config.get("model_type")
    if kind not in MODELS:
        return f"its kind of model is {kind}"
    if on := next((field for field in SWITCHED_OFF if config.get(field)), None):
        return f"its {on} is {config[on]}"
    if (activation := config.get("hidden_act", "silu")) != "silu":
        return f"its activation is {activation}"
    ropes = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for rope in _each_rope(ropes):
        if reason := _why_not_rope(rope):
            return reason
    return None


def _each_rope(ropes: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """One for all layers, or one for each kind of layer."""
    nested = [rope for rope in ropes.values() if isinstance(rope, Mapping)]
    return nested or [ropes]


def _why_not_rope(rope: Mapping[str, Any]) -> str | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ROPES:
        return f"its rotary embedding is scaled by {kind}"
    if (share := rope.get("partial_rotary_factor", 1.0)) not in (None, 1.0):
        return f"it rotates {share:g} of a head alone"
    if kind == "yarn":
        unusual = [field for field, usual in USUAL_YARN.items() if rope.get(field) not in usual]
        return f"its YaRN sets {unusual[0]}" if unusual else None
    return None
