"""Step ``dequantise``: weights in 8-bit floats with scales -> the float32 numbers that they stand for, as GGUF's are.

A weight W [R, C] in float8 is W * S, where S is one scale a block (``weight_scale_inv`` [R/b, C/b], DeepSeek-V3, arXiv
2412.19437, section 3.3; the last block of a row or column may be cut), a scale a row [R, 1] or [R], or a single one
(``weight_scale``). Scales of activations belong to a kernel and are left behind. One file is in memory at a time.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dpo_core.contract.checkpoint_files import CONFIG
from dpo_core.contract.data_jobs import ConvertResult, DequantiseJob
from dpo_core.contract.errors import CheckpointError
from dpo_core.contract.progress import Progress
from dpo_core.contract.store import hash_files, new_directory

SNAPSHOT = "snapshot"
INDEX = "model.safetensors.index.json"
SCALES = ("_scale_inv", "_scale")
OF_ACTIVATIONS = (
    "input_scale",
    "activation_scale",
    "k_scale",
    "v_scale",
    "q_scale",
    "output_scale",
    "input_scale_ub",
)
MARKS = ("quantization_config", "compression_config")
EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)


def dequantised(weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int] | None) -> torch.Tensor:
    """Return ``weight`` [..., R, C] times ``scale`` in float32. Raises ``ValueError`` for a scale of a shape that fits none.

    ``block``: rows and columns that share a scale, as the config says; None: told by the shapes.
    """
    value, scale = weight.float(), scale.float()
    if scale.numel() == 1:
        return value * scale.reshape(())
    if scale.dim() == value.dim() - 1 and scale.shape == value.shape[:-1]:
        scale = scale.unsqueeze(-1)
    if scale.dim() != value.dim():
        raise ValueError(f"a scale of shape {list(scale.shape)} for a weight of shape {list(value.shape)}")
    for dim in range(value.dim()):
        said = block[dim - value.dim()] if block and dim >= value.dim() - 2 else None
        if said is None and scale.shape[dim] in (1, value.shape[dim]):
            continue
        size = said or -(-value.shape[dim] // max(scale.shape[dim], 1))
        if -(-value.shape[dim] // size) != scale.shape[dim]:
            raise ValueError(
                f"a scale of shape {list(scale.shape)} for a weight of shape {list(value.shape)} in blocks of {size}"
            )
        scale = scale.repeat_interleave(size, dim).narrow(dim, 0, value.shape[dim])
    return value * scale


def run(job: DequantiseJob, progress: Progress) -> ConvertResult:
    """Convert into ``out_dir/snapshot`` (see ``jobs.DequantiseJob``). Raises ``CheckpointError``."""
    progress.begin("dequantise", total=len(job.weight_files), unit="files")
    config = json.loads((job.source_dir / CONFIG).read_bytes())
    block = _block_size(config)
    where = {
        name: file for file in job.weight_files for name in _names(job.source_dir / file)
    }  # a scale may lie in another file than its weight
    path = job.out_dir / SNAPSHOT
    with new_directory(path) as aside:
        weight_map: dict[str, str] = {}
        total = 0
        for file in job.weight_files:
            tensors = _plain_tensors(job.source_dir, file, where, block)
            save_file(tensors, aside / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(sorted(tensors), file)
            total += sum(tensor.nbytes for tensor in tensors.values())
            progress.advance()
        if len(job.weight_files) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (aside / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        _copy_small_files(job.source_dir, aside)
        (aside / CONFIG).write_text(json.dumps(_without_marks(config), indent=2) + "\n")
    return ConvertResult(job_fingerprint=job.fingerprint, path=path, files=hash_files(path))


def _names(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return list(file.keys())


def _plain_tensors(
    folder: Path, file: str, where: dict[str, str], block: tuple[int, int] | None
) -> dict[str, torch.Tensor]:
    """One file's weights, dequantised; the others as they are."""
    plain: dict[str, torch.Tensor] = {}
    with safe_open(folder / file, "pt") as opened:
        for name in opened.keys():  # noqa: SIM118 (it is no dict)
            if name.rpartition(".")[2] in OF_ACTIVATIONS or _scales_a_weight(name, where):
                continue
            tensor = opened.get_tensor(name)
            if tensor.dtype not in EIGHT_BITS:
                plain[name] = tensor.contiguous()
                continue
            scale = next((name + ending for ending in SCALES if name + ending in where), None)
            if scale is None:
                raise CheckpointError(
                    f"{folder / file} holds {name} in 8-bit floats without a scale, so its values are not known. Use "
                    "the checkpoint in bf16."
                )
            with safe_open(folder / where[scale], "pt") as other:
                factor = other.get_tensor(scale)
            try:
                plain[name] = dequantised(tensor, factor, block)
            except ValueError as error:
                raise CheckpointError(
                    f"{folder / file}: {name} has {error}. Use the checkpoint in bf16."
                ) from error
            if not torch.isfinite(plain[name]).all():
                raise CheckpointError(
                    f"{folder / file}: {name} times its scale is not finite, so the file is damaged. Fetch it again."
                )
    return plain


def _scales_a_weight(name: str, where: dict[str, str]) -> bool:
    return any(name.endswith(ending) and name.removesuffix(ending) in where for ending in SCALES)


def _block_size(config: dict[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of a block, where the config says them."""
    for holder in (config, *(value for value in config.values() if isinstance(value, dict))):
        for mark in MARKS:
            size = holder[mark].get("weight_block_size") if isinstance(holder.get(mark), dict) else None
            if (
                isinstance(size, list)
                and len(size) == 2
                and all(type(side) is int and side > 0 for side in size)
            ):
                return size[0], size[1]
    return None


def _without_marks(config: dict[str, Any]) -> dict[str, Any]:
    """The config of full weights in float32."""
    plain = {
        name: _without_marks(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name not in MARKS
    }
    return {**plain, **{name: "float32" for name in ("dtype", "torch_dtype") if name in plain}}


def _copy_small_files(source_dir: Path, target: Path) -> None:
    for path in sorted(source_dir.iterdir()):
        is_small = path.suffix in (".json", ".jinja", ".model", ".txt", ".py") and path.name not in (
            INDEX,
            CONFIG,
        )
        if path.is_file() and is_small:
            shutil.copyfile(path, target / path.name)
