"""What ``compute.tensor_degree`` can do, as far as a checkpoint's config.json tells. Torch-free: a plan says it, too."""

from collections.abc import Mapping
from typing import Any, Literal

from dpo_core.contract.errors import ConfigError

MODELS = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen 2",
    "qwen3": "Qwen 3",
    "olmo2": "OLMo 2",
    "olmo3": "OLMo 3",
}
BIASES = ("attention_bias", "mlp_bias")  # of matrices that write to the residual stream, too
Shared = Literal["outputs", "inputs"]  # of a linear layer: dimension 0 or 1 of its weight


def check_tensor_degree(config: Mapping[str, Any], name: str, degree: int) -> None:
    """Raise ``ConfigError`` for a model, by the content of its config.json, that ``degree`` processes cannot share out by
    its heads and its MLP's width. ``name``: what the message calls it."""
    if degree > 1 and (reason := why_not_tensor(config, degree)):
        raise ConfigError(
            f"compute.tensor_degree {degree} does not go with {name}: {reason}.",
            f"Tensor parallelism is there for {', '.join(MODELS.values())}, with sizes that can be divided by it. Set "
            "another degree, or 1.",
        )


def why_not_tensor(config: Mapping[str, Any], degree: int) -> str | None:
    """Return what keeps a model from being shared out so; None if nothing is known."""
    if (kind := config.get("model_type")) not in MODELS:
        return f"its kind of model is {kind}"
    if on := next((field for field in BIASES if config.get(field)), None):
        return f"its {on} is {config[on]}"
    heads = config.get("num_attention_heads")
    sizes = {
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "intermediate_size": config.get("intermediate_size"),
    }
    for field, size in sizes.items():
        if isinstance(size, int) and size % degree:
            return f"its {field} is {size}"
    return None


def parts_of_plan(plan: Mapping[str, str]) -> dict[str, Shared | None]:
    """Return name of a module -> what of its matrix is shared out, by transformers' words for it; None for a module
    without matrices. Raises ``ConfigError`` for a word that is not known."""
    parts: dict[str, Shared | None] = {}
    for name, style in plan.items():
        if style.startswith("colwise"):
            parts[name] = "outputs"
        elif style.startswith("rowwise"):
            parts[name] = "inputs"
        elif style == "replicated_with_grad_allreduce":
            parts[name] = None
        else:
            raise ConfigError(
                f"compute.tensor_degree does not know how to share {name} out, which transformers calls {style}.",
                "Set compute.tensor_degree to 1.",
            )
    return parts
