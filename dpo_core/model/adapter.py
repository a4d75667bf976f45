"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): W x + (alpha / rank) B A x with W frozen, A and B trained.

B starts at 0, so the policy starts as the checkpoint. The reference is the same model with the adapter switched off:
one model in memory serves as both. Embeddings and output head never get an adapter: where they are tied, an update of one
would be an update of the other, and merging would write it twice.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dpo_core.contract.config import AdapterConfig
from dpo_core.contract.errors import ConfigError
from dpo_core.contract.float8 import TRANSFORMERS, ModelCode
from dpo_core.contract.refs import CheckpointRef
from dpo_core.model.load import Loading, load_model, load_on_olmo_core
from dpo_core.model.tensor_parallel import TensorShare

log = logging.getLogger(__name__)

ADAPTER_FOLDER, WEIGHTS_FILE, CONFIG_FILE = "adapter", "adapter_model.safetensors", "adapter_config.json"
PEFT_PREFIX = "base_model.model."  # what peft's own wrapper puts before the names of the model it wraps


def load_policy(
    checkpoint: CheckpointRef,
    adapter: AdapterConfig,
    seed: int,
    where: Loading | None = None,
    frozen_in_half: bool = False,
    code: ModelCode = TRANSFORMERS,
) -> PreTrainedModel:
    """Return the policy's start: the checkpoint in eval mode, with a fresh adapter if one is asked for. ``where``: to
    which device, and which of the values; all to the CPU without it. ``frozen_in_half`` holds the matrices beside the
    adapter in bf16, as autocast would have them anyway.

    Only what is trained requires gradients. A is drawn from ``seed`` on the CPU, so every rank and device starts alike.
    """
    where = where or {}
    if adapter.kind == "none":
        if code.implementation == "olmo_core":
            return load_on_olmo_core(checkpoint, float8=code.float8, **where)
        return load_model(checkpoint, **where)
    if code.implementation == "olmo_core":
        raise ConfigError(
            f"adapter.kind {adapter.kind} does not go with train.implementation olmo_core: adapters go on the layers of "
            "transformers' models, which peft knows by name.",
            "Set train.implementation to transformers.",
        )
    device = where.get("device", "cpu")
    at = device if adapter.base_weights == "nf4" else "cpu"  # 4-bit weights are made on the card
    on_the_way: Loading = {**where, "device": at}
    model = load_model(checkpoint, base_weights=adapter.base_weights, **on_the_way)
    add_adapter(model, adapter, seed)
    if frozen_in_half and adapter.base_weights == "full":
        halve_frozen(model)
    return model.to(device)  # type: ignore[arg-type]  # transformers wraps it and loses `self`


def halve_frozen(model: PreTrainedModel) -> None:
    """Hold the frozen matrices of linears in bf16, half of the memory, and those of embeddings that lose nothing by it. For
    forwards under autocast, which casts a linear's weight at every use anyway; what an embedding gives is float32 again. So
    the numbers are the same."""
    frozen = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Embedding) and not module.weight.requires_grad
    ]
    exact = {
        id(module.weight)
        for module in frozen
        if isinstance(module, nn.Embedding)
        and not torch.equal(module.weight.bfloat16().float(), module.weight)
    }  # as is, a head that is tied to one likewise
    for module in frozen:
        if id(module.weight) not in exact:
            module.weight.data = module.weight.data.to(torch.bfloat16)
            if isinstance(module, nn.Embedding):
                module.register_forward_hook(in_full)


def in_full(module: nn.Module, arguments: object, output: torch.Tensor) -> torch.Tensor:
    """Have an embedding that is held in bf16 give float32, as autocast leaves the first residual. A forward hook."""
    return output.float()


def add_adapter(model: PreTrainedModel, adapter: AdapterConfig, seed: int) -> PreTrainedModel:
    """Freeze the model and give it a fresh adapter, in place. Raises ``ConfigError`` for targets that cannot have one."""
    targets = target_names(model, adapter)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_adapter(
            LoraConfig(
                r=adapter.rank,
                lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # peft only divides it by the rank
                lora_dropout=0.0,
                bias="none",
                target_modules=targets,
                task_type="CAUSAL_LM",
            )
        )
    trained, total = count_parameters(model)
    log.info(
        "adapter of rank %d on %s: %d of %d parameters are trained (%.2f %%)",
        adapter.rank,
        ", ".join(targets),
        trained,
        total,
        100 * trained / total,
    )
    return model.eval()


def target_names(model: PreTrainedModel, adapter: AdapterConfig) -> list[str]:
    """Return the last parts of the names of the layers that get an adapter, sorted. Raises ``ConfigError`` saying which do
    not fit.
    """
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    linear = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)
    }
    names = {name.rpartition(".")[2] for name, module in linear.items() if id(module) not in ends}
    fitting = sorted(name for name in names if not _stands_for_experts(name, model))
    if adapter.target_modules == "all-linear":
        return fitting
    for wanted in adapter.target_modules:
        found = [
            (name, module)
            for name, module in model.named_modules()
            if name == wanted or name.endswith(f".{wanted}")
        ]
        if not found:
            raise ConfigError(
                f"adapter.target_modules names {wanted}, but {type(model).__name__} has no such layer. Name "
                f"some of {', '.join(fitting)}, or use all-linear."
            )
        if any(id(module) in ends for _, module in found):
            raise ConfigError(
                f"adapter.target_modules names {wanted}, which is the embedding or the output head. They "
                "may be tied, and an adapter on one would change both. Name some of "
                f"{', '.join(fitting)}, or use all-linear."
            )
        if _stands_for_experts(wanted, model):
            raise ConfigError(
                f"adapter.target_modules names {wanted}, which peft takes for the stacked experts of "
                f"{type(model).__name__}; experts get no adapter here. Name some of {', '.join(fitting)}, or "
                "use all-linear."
            )
        if other := [name for name, _ in found if name not in linear]:
            raise ConfigError(
                f"adapter.target_modules names {wanted}, but {other[0]} is no linear layer. Name some of "
                f"{', '.join(fitting)}, or use all-linear."
            )
    return sorted(adapter.target_modules)


def _stands_for_experts(name: str, model: PreTrainedModel) -> bool:
    """Whether peft would put an adapter on stacked expert weights in place of the linear layers of this name, as it does for
    adapters of the time when each expert was a layer."""
    config = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, model, conversions=None)
    except ValueError:  # only together with another name
        return True
    return name not in (config.target_modules or ())


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Count (trained, all) parameters, the adapter's included; tied ones count once, shared-out and 4-bit ones
    whole.
    """
    share = TensorShare.of(model)
    sizes = [
        (
            share.num_values(name, parameter.numel()) if share else _num_values(parameter),
            parameter.requires_grad,
        )
        for name, parameter in model.named_parameters()
    ]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def _num_values(parameter: nn.Parameter) -> int:
    if (quantised := getattr(parameter, "quant_state", None)) is not None:  # two values a byte
        return quantised.shape.numel()
    return getattr(parameter, "ds_numel", parameter.numel())


@contextmanager
def adapter_disabled(model: PreTrainedModel) -> Iterator[None]:
    """Have the model compute inside what its base does: the reference."""
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()  # peft gives the adapter its requires_grad back, too


def save_adapter(model: PreTrainedModel, folder: Path, checkpoint: CheckpointRef) -> None:
    """Write the adapter in peft's format, for ``PeftModel.from_pretrained(base, folder)``. Equal models, equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        PEFT_PREFIX + name: tensor.detach().cpu().contiguous()
        for name, tensor in model.get_adapter_state_dict().items()
    }
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = cast(LoraConfig, next(iter(model.peft_config.values()))).to_dict()
    # A path of this machine means nothing elsewhere; sets have no order, and a file's hash must not depend on one.
    on_hub = checkpoint.revision is not None
    config = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    config |= {
        "base_model_name_or_path": checkpoint.source if on_hub else None,
        "revision": checkpoint.revision,
        "inference_mode": True,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def merge_adapter(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Return ``base`` with the adapter of ``folder`` added to its weights: W + (alpha / rank) B A, a plain model again."""
    return PeftModel.from_pretrained(base, folder).merge_and_unload(safe_merge=True).requires_grad_(True)
