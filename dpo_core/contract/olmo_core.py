"""What ``train.implementation: olmo_core`` can do, as far as a checkpoint's config.json tells. Torch-free, so that a plan
says it, too."""

import math
from collections.abc import Mapping
from itertools import chain
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
LAYERS = ("full_attention", "sliding_attention")


def check_olmo_core(config: Mapping[str, Any], name: str, runs_own_code: bool = False) -> None:
    """Raise ``ConfigError`` for a model, by the content of its config.json, that cannot be trained on OLMo-core. ``name``:
    what the message calls it; ``runs_own_code``: whether code of the checkpoint's own may be executed."""
    if reason := why_not_olmo_core(config, runs_own_code):
        raise ConfigError(
            f"train.implementation olmo_core cannot train {name}: {reason}.",
            f"OLMo-core is used for {', '.join(MODELS.values())}. Set train.implementation to transformers.",
        )


def why_not_olmo_core(config: Mapping[str, Any], runs_own_code: bool = False) -> str | None:
    """Return what OLMo-core's Transformer cannot express of a model; None if nothing is known."""
    kind = config.get("model_type")
    if kind not in MODELS:
        return f"its kind of model is {kind}"
    if runs_own_code and "AutoModelForCausalLM" in (config.get("auto_map") or {}):
        return "it is computed by code of its own (auto_map), which would not be run"
    if on := next((field for field in SWITCHED_OFF if config.get(field)), None):
        return f"its {on} is {config[on]}"
    if (activation := config.get("hidden_act", "silu")) != "silu":
        return f"its activation is {activation}"
    layers = config.get("layer_types") or ()
    if other := next((layer for layer in layers if layer not in LAYERS), None):
        return f"it has layers of {other}"
    if "sliding_attention" in layers and not _has_window(config):
        return "it has layers of sliding_attention, and no window"
    ropes = (_each_rope(config.get(name) or {}) for name in ("rope_scaling", "rope_parameters"))
    for rope in (config, *chain.from_iterable(ropes)):  # older files have the rotated share beside them
        if reason := _why_not_rope(rope):
            return reason
    return None


def _has_window(config: Mapping[str, Any]) -> bool:
    """Models that can switch it off have it switched off unless they say otherwise; OLMo 3 has one of 4096."""
    is_on = config.get("use_sliding_window", config.get("model_type") != "qwen3")
    return bool(is_on and config.get("sliding_window", 4096))


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
        unusual += [] if _scales_as_usual(rope) else ["attention_factor"]
        return f"its YaRN sets {unusual[0]}" if unusual else None
    return None


def _scales_as_usual(yarn: Mapping[str, Any]) -> bool:
    """Whether queries and keys are scaled as the paper has it (arXiv 2309.00071), which OLMo-core always does; files round
    it."""
    stated, factor = yarn.get("attention_factor"), float(yarn.get("factor") or 0)
    return stated is None or (factor > 0 and abs(stated - 0.1 * math.log(factor) - 1) < 1e-4)
