"""Safetensors files written tensor by tensor, hashed while they are written.

The bytes are those that ``safetensors.torch.save_file`` writes of the same tensors.
"""

import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dpo_core.model.tensor_slices import DTYPES

NAMES = {dtype: name for name, dtype in DTYPES.items()}
WORTH_A_THREAD = 1 << 20  # bytes: writing and hashing less takes about as long as waking a thread


@dataclass(frozen=True, slots=True)
class HeaderEntry:
    """What a file's header says of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def in_file_order(entries: Mapping[str, HeaderEntry]) -> list[str]:
    """Return names as safetensors orders them: wide numbers first, so that every tensor is aligned; then by name."""
    return sorted(entries, key=lambda name: (-entries[name].dtype.itemsize, name))


class TensorFile:
    """A file being written. Tensors come in the file's order, each whole or in pieces one after the other."""

    def __init__(
        self, path: Path, entries: Mapping[str, HeaderEntry], metadata: dict[str, str] | None = None
    ):
        """Create the file, which must not be there, and write its header."""
        self._file = path.open("xb")
        self._digest = hashlib.sha256()
        self._hashing = ThreadPoolExecutor(1, "hashing")
        self._left = sum(entry.num_bytes for entry in entries.values())
        self._write(memoryview(_header(entries, metadata)))

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._hashing.shutdown()
        self._file.close()

    def add(self, values: Tensor) -> None:
        """Write the next values, on the CPU."""
        content = values.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
        self._left -= content.nbytes
        assert self._left >= 0
        self._write(content)

    def finish(self) -> str:
        """Push everything to the disk. -> sha256 of the file"""
        assert self._left == 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._digest.hexdigest()

    def _write(self, content: memoryview) -> None:
        """Write and hash, one beside the other: each takes about a second of a GB."""
        if content.nbytes < WORTH_A_THREAD:
            self._digest.update(content)
            self._file.write(content)
            return
        hashed = self._hashing.submit(self._digest.update, content)
        try:
            self._file.write(content)
        finally:
            hashed.result()  # the values may change once this returns


def write_tensors(
    path: Path,
    entries: Mapping[str, HeaderEntry],
    values: Callable[[str], Tensor],
    metadata: dict[str, str] | None = None,
) -> str:
    """Write a file whose tensors are asked for one by one, in the file's order. -> its sha256"""
    with TensorFile(path, entries, metadata) as file:
        for name in in_file_order(entries):
            file.add(values(name).cpu())
        return file.finish()


def _header(entries: Mapping[str, HeaderEntry], metadata: dict[str, str] | None) -> bytes:
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name in in_file_order(entries):
        start, end = end, end + entries[name].num_bytes
        header[name] = {
            "dtype": NAMES[entries[name].dtype],
            "shape": list(entries[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
