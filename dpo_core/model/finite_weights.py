"""Whether a checkpoint's weights are numbers: one that is none makes every log-probability none, which the reference pass
would find out on a card."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from dpo_core.contract.checkpoint_files import RUN_WEIGHTS, files_of
from dpo_core.contract.errors import CheckpointError

VALUES_AT_ONCE = 1 << 22
FLOATS = ("F64", "F32", "F16", "BF16")
NAMED = 3


def check_finite(folder: Path, source: str, passed_by: tuple[str, ...] = ()) -> None:
    """Raise ``CheckpointError`` for NaN and infinities in the weights of ``folder``, but for names that end as
    ``passed_by``. Each file is read once, some rows at a time."""
    wrong: list[str] = []
    count = 0
    for file in files_of(folder, RUN_WEIGHTS):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no dict)
                slices = opened.get_slice(name)
                if slices.get_dtype() not in FLOATS or name.endswith(passed_by):
                    continue
                count += 1
                if not all(map(_is_finite, _some_rows(opened, name, slices.get_shape()))):
                    wrong.append(name)
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} of the {count} tensors of {source} hold NaN or infinities: {', '.join(wrong[:NAMED])}"
            f"{' ...' if len(wrong) > NAMED else ''}. The training that made it broke down, or the files are damaged: use "
            "an earlier checkpoint of that training, or fetch it again."
        )


def _some_rows(opened: safe_open, name: str, shape: list[int]) -> Iterator[torch.Tensor]:
    if not shape:
        yield opened.get_tensor(name)
        return
    rows = max(1, VALUES_AT_ONCE // max(1, torch.Size(shape[1:]).numel()))
    slices = opened.get_slice(name)
    yield from (slices[first : first + rows] for first in range(0, shape[0], rows))


def _is_finite(values: torch.Tensor) -> bool:
    """By the extremes, one pass: both are NaN where one value is."""
    return not values.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(values)).float()).all())
