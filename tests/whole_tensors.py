"""What several files hold of tensors, each whole."""

from pathlib import Path

from torch import Tensor

from dpo_core.contract.checkpoint_files import files_of
from dpo_core.model.tensor_slices import open_slices


def whole_tensors(folder: Path, file: str) -> dict[str, Tensor]:
    """The tensors of ``file`` in a folder, whether it lies there itself or in parts."""
    with open_slices(files_of(folder, file)) as slices:
        return {name: slices.read(name).view(about.shape) for name, about in slices.tensors.items()}
