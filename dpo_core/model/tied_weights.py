"""Whether matrices that a config calls one are one in the files.

transformers parts them if both are there with different values, but a model that is made before its values are read, as
back ends do that share weights out, has one matrix for both and reads one of the two.
"""

from collections import defaultdict
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from dpo_core.contract.checkpoint_files import RUN_WEIGHTS, files_of
from dpo_core.contract.errors import CheckpointError

ROWS_AT_ONCE = 4096


def check_tied(model: PreTrainedModel, folder: Path, source: str) -> None:
    """Raise ``CheckpointError`` if files hold two different matrices for one of ``model``, of which no values are needed."""
    of_tensor: defaultdict[int, list[str]] = defaultdict(list)
    for name, tensor in model.state_dict(keep_vars=True).items():
        of_tensor[id(tensor)].append(name)
    where: dict[str, Path] = {}
    for file in files_of(folder, RUN_WEIGHTS):
        with safe_open(file, "pt") as opened:
            where |= dict.fromkeys(opened.keys(), file)
    for names in of_tensor.values():
        stored = [name for name in names if name in where]
        for other in stored[1:]:
            if not _is_same((where[stored[0]], stored[0]), (where[other], other)):
                raise CheckpointError(
                    f"config.json of {source} says that {stored[0]} and {other} are one matrix (tie_word_embeddings), and "
                    "its files hold two different ones. Set tie_word_embeddings to false there if the files are right, "
                    "or take the one that is not used out of them."
                )


def _is_same(left: tuple[Path, str], right: tuple[Path, str]) -> bool:
    """Compare two tensors of files, some rows at a time."""
    with safe_open(left[0], "pt") as of_left, safe_open(right[0], "pt") as of_right:
        slices = of_left.get_slice(left[1]), of_right.get_slice(right[1])
        shapes = [one.get_shape() for one in slices]
        if shapes[0] != shapes[1]:
            return False
        rows = shapes[0][0] if shapes[0] else 0
        return all(
            torch.equal(*(one[first : first + ROWS_AT_ONCE] for one in slices))
            for first in range(0, rows, ROWS_AT_ONCE)
        )
