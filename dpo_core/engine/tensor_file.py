"""Safetensors files written tensor by tensor: one whole tensor in memory at a time, however large the model is.

The bytes are those that ``safetensors.torch.save_file`` writes of the same tensors.
"""

import contextlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from dpo_core.contract.errors import StoreError

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A whole tensor that may lie in parts on several ranks."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    gather: Callable[[], Tensor]  # called by every rank at once; the whole tensor counts on rank 0 only

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def whole(tensor: Tensor) -> StoredTensor:
    """Return a tensor that this rank holds whole."""
    return StoredTensor(tuple(tensor.shape), tensor.dtype, tensor.detach)


def write_tensors(
    path: Path | None, tensors: dict[str, StoredTensor], metadata: dict[str, str] | None = None
) -> None:
    """Gather tensors one by one, in the file's order, and write them to ``path``; ranks with no path only take part."""
    # safetensors' order: wide numbers first, so that every tensor is aligned; then by name.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    if path is None:
        for _, tensor in ordered:
            tensor.gather()
        return
    with path.open("wb") as file:
        file.write(_header(ordered, metadata))
        for _, tensor in ordered:
            content = tensor.gather().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            assert content.nbytes == tensor.num_bytes
            file.write(content)  # type: ignore[arg-type]  # arrays are buffers; numpy says so from Python 3.12 on


@contextlib.contextmanager
def open_tensors(path: Path, names: Iterable[str]) -> Iterator[Callable[[str], Tensor]]:
    """Yield a function that reads one tensor of a file by name. Raises ``StoreError`` unless the file holds just
    ``names``.
    """
    with safe_open(path, "pt") as file:
        if differing := set(file.keys()) ^ set(names):
            raise StoreError(f"{path} holds other tensors than the run: {sorted(differing)[:5]}.")
        yield file.get_tensor


def _header(ordered: list[tuple[str, StoredTensor]], metadata: dict[str, str] | None) -> bytes:
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.num_bytes
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
