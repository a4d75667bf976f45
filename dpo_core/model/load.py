"""Checkpoint folder -> model on a device, ready to be scored or trained."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from dpo_core.contract.config import AdapterConfig, BaseWeights, OptimConfig
from dpo_core.contract.cuda8bit import check_cuda8bit
from dpo_core.contract.errors import CheckpointError, ConfigError, UserError
from dpo_core.contract.float8 import Float8Recipe, check_float8, check_float8_card
from dpo_core.contract.olmo_core import check_olmo_core
from dpo_core.contract.refs import CheckpointRef
from dpo_core.model.four_bits import DOUBLE_QUANT, QUANT_TYPE
from dpo_core.model.generation_settings import read_settings
from dpo_core.model.unread_weights import leave_unread, take_unread

log = logging.getLogger(__name__)

RANDOM = (
    "attention_dropout",
    "hidden_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "router_jitter_noise",
)
WITHOUT_MEMORY = "meta"  # PyTorch's device of tensors that have a shape and no values


class Loading(TypedDict, total=False):
    """Arguments of ``load_model`` about where to, and which values."""

    device: torch.device | str
    read_weights: bool
    in_parts: bool


def _disable_dropout(model: nn.Module) -> None:
    """Policy and reference must agree on the same input, so no layer may be random (as in every DPO trainer)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def _in_four_bits(device: torch.device | str) -> dict:
    """QLoRA's settings: normal-float 4 bits, the scales quantised as well, matrix products in bf16."""
    check_cuda8bit(AdapterConfig(kind="qlora"), OptimConfig(), torch.cuda.device_count())
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=QUANT_TYPE,
        bnb_4bit_use_double_quant=DOUBLE_QUANT,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": nf4, "device_map": {"": device}}


def with_loading_info(path: Path, **settings: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return transformers' ``from_pretrained`` and what it says of missing and unexpected keys."""
    both = AutoModelForCausalLM.from_pretrained(
        path, output_loading_info=True, generation_config=read_settings(path), **settings
    )
    model, info = cast(tuple[PreTrainedModel, dict[str, Any]], both)  # its types know the model alone
    if settings.get("device_map") == WITHOUT_MEMORY:
        model.tie_weights()  # without values it cannot see that what files hold twice is one, and leaves it apart
    return model, info


def load_model(
    checkpoint: CheckpointRef,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    base_weights: BaseWeights = "full",
    read_weights: bool = True,
    in_parts: bool = False,
) -> PreTrainedModel:
    """Load a causal language model with its weights in ``dtype``, in eval mode, without dropout.

    ``nf4`` keeps the linear layers in 4 bits (QLoRA, arXiv 2305.14314) and needs bitsandbytes.
    On the device ``meta`` names and shapes are looked at and no values read. Without ``read_weights`` the weights are memory
    that nothing was written to, which costs none: an engine fills in rank 0's. ``in_parts`` leaves them so on every rank
    where an engine can read each rank's own from the files. Raises ``CheckpointError`` if transformers cannot build it or
    weights are missing from the files.
    """
    loading: dict[str, Any]
    quantised = _in_four_bits(device) if base_weights == "nf4" else {}
    placed = {"device_map": WITHOUT_MEMORY} if device == WITHOUT_MEMORY else quantised
    try:
        config = _config_without_dropout(checkpoint)
        check_full(config, checkpoint.source)
        unread = in_parts and not quantised and _left_unread(checkpoint, config, dtype)
        if unread:
            model, loading = unread, {"missing_keys": []}
        elif read_weights:
            model, loading = with_loading_info(
                checkpoint.path,
                config=config,
                dtype=dtype,
                trust_remote_code=checkpoint.allow_remote_code,
                local_files_only=True,
                **placed,
            )
        else:
            model, loading = _unwritten_model(checkpoint, config, dtype), {"missing_keys": ()}
    except UserError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{checkpoint.source} at {checkpoint.path} cannot be loaded as a causal language model: {error}"
        ) from error
    check_complete(checkpoint.source, loading["missing_keys"])
    _disable_dropout(model)
    model.config.get_text_config().use_cache = model.config.use_cache = False
    return model.eval() if quantised else model.to(device).eval()  # type: ignore[arg-type]  # transformers wraps it and loses `self`


def check_complete(source: str, missing: Iterable[str], unexpected: Iterable[str] = ()) -> None:
    """Raise ``CheckpointError`` if weights are missing from a checkpoint's files, with some of those that have no place."""
    if names := sorted(missing):
        instead = ", ".join(sorted(unexpected)[:3])
        raise CheckpointError(
            f"{source} lacks weights that its config.json calls for: {', '.join(names[:5])}"
            f"{' ...' if len(names) > 5 else ''}. They would be random; use a complete checkpoint."
            + (f" Its files hold others that the model has no place for: {instead} ..." if instead else "")
        )


def read_config(checkpoint: CheckpointRef) -> PreTrainedConfig:
    """Return a checkpoint's config, but for the attention kernel that it was saved with: which one computes is the
    trainer's to say, and that one may not be installed."""
    config = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=checkpoint.allow_remote_code)
    if config._attn_implementation is not None:
        config._attn_implementation = None
    return config


def check_full(config: PreTrainedConfig, source: str) -> None:
    """Raise ``CheckpointError`` for weights that the config calls quantised: fetching makes plain ones of those that can be
    trained, so these were not fetched."""
    for part in (config, config.get_text_config()):
        mark = getattr(part, "quantization_config", None)
        if mark is not None:
            method = mark.get("quant_method") if isinstance(mark, dict) else mark
            raise CheckpointError(
                f"config.json of {source} says that its weights are quantised ({str(method)[:60]}), and a step trains and "
                "scores plain ones alone. `pairline prepare` and `run` make plain weights of 8-bit floats when they fetch "
                "the checkpoint: name it as checkpoint.source there."
            )


def _config_without_dropout(checkpoint: CheckpointRef) -> PreTrainedConfig:
    config = read_config(checkpoint)
    for name in RANDOM:
        for part in (config, config.get_text_config()):
            if getattr(part, name, 0):
                setattr(part, name, 0.0)
    return config


def _left_unread(
    checkpoint: CheckpointRef, config: PreTrainedConfig, dtype: torch.dtype
) -> PreTrainedModel | None:
    """The unwritten model if the files hold its weights as they are in memory."""
    model = _unwritten_model(checkpoint, config, dtype)
    if leave_unread(model, Path(checkpoint.path)):
        return model
    log.info(
        "the checkpoint's files hold other tensors than the model: rank 0 reads all, the others get theirs"
    )
    return None


def _unwritten_model(
    checkpoint: CheckpointRef, config: PreTrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    """The model with real buffers and parameters on the CPU that were never written to; tied ones stay tied."""
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=checkpoint.allow_remote_code
        )
    model.tie_weights()  # the context gave each place a parameter of its own
    return _with_unwritten_memory(model, checkpoint)


def _with_unwritten_memory(model: PreTrainedModel, checkpoint: CheckpointRef) -> PreTrainedModel:
    """Put memory on the CPU in the place of parameters on the device ``meta``."""
    unwritten: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in unwritten:
                unwritten[id(parameter)] = nn.Parameter(
                    torch.empty_like(parameter, device="cpu"), parameter.requires_grad
                )
            module._parameters[name] = parameter if parameter is None else unwritten[id(parameter)]
    if (settings := read_settings(Path(checkpoint.path))) is not None:
        model.generation_config = settings
    return model


def load_on_olmo_core(
    checkpoint: CheckpointRef,
    device: torch.device | str = "cpu",
    read_weights: bool = True,
    in_parts: bool = False,
    float8: Float8Recipe = "none",
) -> PreTrainedModel:
    """Load the checkpoint as OLMo-core computes it, in float32, under the names of ``load_model`` and with its arguments;
    ``float8``: how products of its layers are computed where it computes in bf16. Raises ``ConfigError`` where OLMo-core is
    not installed, ``CheckpointError`` for a model that it cannot express."""
    logging.getLogger("olmo_core").setLevel(logging.ERROR)  # it prints whole models
    try:
        from olmo_core.exceptions import OLMoConfigurationError  # of the extra olmo: 6 s of imports

        from dpo_core.model.olmo_core import OlmoCoreModel
    except ImportError as error:
        raise ConfigError(
            f"train.implementation is olmo_core, which cannot be imported where this step runs: {error}.",
            "`make setup EXTRAS=olmo` makes an environment that has it (compute.python), image.variant cpu-olmo or "
            "cuda-olmo an image.",
        ) from error
    try:
        config = _config_without_dropout(checkpoint)
        check_olmo_core(config.to_dict(), checkpoint.source, checkpoint.allow_remote_code)
        config.use_cache = False
        model = _with_unwritten_memory(OlmoCoreModel(config), checkpoint)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, OLMoConfigurationError) as error:
        raise CheckpointError(
            f"{checkpoint.source} at {checkpoint.path} cannot be built as a model of OLMo-core: {error}",
            "Set train.implementation to transformers.",
        ) from error
    if not leave_unread(model, Path(checkpoint.path)):
        raise CheckpointError(
            f"{checkpoint.source} at {checkpoint.path} has no safetensors files of the tensors that its config.json calls "
            "for, which train.implementation olmo_core reads.",
            "Set train.implementation to transformers.",
        )
    if read_weights and not in_parts:
        unread = take_unread(model)
        assert unread is not None  # left there above
        for name, parameter in model.named_parameters():
            unread.fill(name, parameter.detach())
        unread.slices.close()
    if float8 != "none":
        _use_float8(model, float8, checkpoint.source)
    return model.to(device).eval()  # type: ignore[arg-type]  # transformers wraps it and loses `self`


def _use_float8(model: Any, recipe: Float8Recipe, source: str) -> None:
    """Raises ``ConfigError`` for a model or a card that cannot do it, and where torchao is not installed."""
    check_float8(model.config.to_dict(), source, recipe)
    if torch.cuda.is_available():
        check_float8_card(torch.cuda.get_device_capability(), torch.cuda.get_device_name())
    try:
        from dpo_core.model.olmo_core_float8 import use_float8
    except ImportError as error:
        raise ConfigError(
            f"train.float8 is {recipe}, and torchao cannot be imported where this step runs: {error}.",
            "`make setup EXTRAS=olmo` makes an environment that has it (compute.python). Or set train.float8 to none.",
        ) from error
    use_float8(model, recipe)


def load_in_full(
    checkpoint: CheckpointRef, base_weights: BaseWeights, device: torch.device | str
) -> PreTrainedModel:
    """Return the model in float32 with the values that ``base_weights`` can hold: what an adapter was trained on."""
    model = load_model(checkpoint, device, base_weights=base_weights)
    return model.dequantize().float() if base_weights == "nf4" else model
