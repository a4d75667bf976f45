"""Which number format a checkpoint's weights are in, told by its config's mark and the headers of its files. Torch-free.

what the config says      what the files hold             what becomes of it
nothing                   F32, F16, BF16                  used as it is
fp8, compressed-tensors   F8 weights, a scale beside each  dequantised into float32, as GGUF is
any mark                  F32, F16, BF16                  refused: the mark is wrong, or the weights are
gptq, awq, bitsandbytes   packed integers                 refused: there are no weights to train
anything                  F4, F6, other F8, complex       refused: not known here, or no weights of a model
"""

from pathlib import Path
from typing import Any

from dpo_core.contract.checkpoint_files import CONFIG
from dpo_core.contract.errors import CheckpointError
from tasks.checkpoint.own_files import read_json_file

MARKS = ("quantization_config", "compression_config")
OF_FP8 = ("fp8", "fbgemm_fp8", "finegrained_fp8", "compressed-tensors", "modelopt")
FULL = ("F64", "F32", "F16", "BF16")
INTEGERS = ("I32", "I8", "U8", "I16", "I64", "U32", "U16", "U64", "BOOL")
FP8 = ("F8_E4M3", "F8_E5M2")
SCALED_BY = ("F64", "F32", "F16", "BF16", "F8_E8M0")
SCALES = (
    "_scale_inv",
    "_scale",
)  # appended to a weight's name: DeepSeek's and Qwen's blocks; compressed-tensors' rows
PACKED = (".qweight", ".weight_packed", ".absmax", ".qzeros", ".weight", "_blocks")
OFTEN = "the checkpoint that it was made from, which its model card names as a rule"


def quantisation_mark(folder: Path) -> dict[str, Any] | None:
    """Return what the config says of quantised weights, in any of the places where libraries write it."""
    config = read_json_file(folder / CONFIG)
    nested = [value for value in config.values() if isinstance(value, dict)]
    marks = (holder[mark] for holder in (config, *nested) for mark in MARKS if holder.get(mark) is not None)
    found = (mark if isinstance(mark, dict) else {"quant_method": str(mark)[:60]} for mark in marks)
    return next(found, None)


def holds_fp8(tensors: dict[str, dict]) -> bool:
    """Tell whether weights are in 8-bit floats. ``tensors``: the headers' entries by name."""
    return any(entry["dtype"] in FP8 for entry in tensors.values())


def check_full_weights(folder: Path, source: str, tensors: dict[str, dict]) -> None:
    """Raise ``CheckpointError`` unless the weights are full ones, or 8-bit floats with a scale beside each.

    ``tensors``: the entries of all headers by tensor name.
    """
    mark = quantisation_mark(folder)
    method = (
        "no method that its config names"
        if mark is None
        else str(mark.get("quant_method") or "an unnamed method")
    )
    packed = sorted(
        name for name, entry in tensors.items() if name.endswith(PACKED) and entry["dtype"] in INTEGERS
    )
    if packed:
        raise CheckpointError(
            f"{source} is quantised ({method}): it holds packed integers ({packed[0]} ...) and no weights that could be "
            f"trained. Use {OFTEN}."
        )
    _check_formats(source, tensors)
    in_fp8 = [name for name, entry in tensors.items() if entry["dtype"] in FP8]
    if bare := sorted(name for name in in_fp8 if not any(name + scale in tensors for scale in SCALES)):
        raise CheckpointError(
            f"{source} holds 8-bit floats without a scale beside them ({bare[0]}; expected {bare[0]}{SCALES[0]} or "
            f"{bare[0]}{SCALES[1]}), so their values are not known. Use {OFTEN}."
        )
    scaled = [(name + scale, tensors.get(name + scale)) for name in in_fp8 for scale in SCALES]
    if odd := sorted(name for name, entry in scaled if entry is not None and entry["dtype"] not in SCALED_BY):
        raise CheckpointError(
            f"{source} holds 8-bit floats whose scales are no floats ({odd[0]}: {tensors[odd[0]]['dtype']}; exponents of "
            f"MXFP8, as a rule), which is not known here. Use {OFTEN}."
        )
    may_be_fp8 = method.lower() in OF_FP8 and not tensors  # before the files are there
    if mark is not None and not in_fp8 and not may_be_fp8:
        raise CheckpointError(
            f"{folder / CONFIG} says that the weights are quantised ({method}), of which none can be trained. Use {OFTEN}. "
            f"If the files hold full weights, the mark is wrong: remove `quantization_config` from {CONFIG}."
        )


def _check_formats(source: str, tensors: dict[str, dict]) -> None:
    """Raise ``CheckpointError`` for number formats that loaders would turn into something else, or do not know."""
    for name, entry in tensors.items():
        if entry["dtype"] not in (*FULL, *INTEGERS, *FP8, "F8_E8M0"):
            raise CheckpointError(
                f"{source} holds {name} in the number format {entry['dtype']}, in which no weights can be read here. Use "
                f"{OFTEN}."
            )
