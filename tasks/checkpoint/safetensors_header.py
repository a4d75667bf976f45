"""The header of a safetensors file, read without loading a tensor: tells a cut download before anything is trained.

Format (huggingface/safetensors): 8 bytes little-endian length N, N bytes of JSON {tensor: {dtype, shape, data_offsets}},
then the tensors' bytes, without gaps, to the end of the file.
"""

import math
import os
from pathlib import Path
from typing import Any

from dpo_core.contract.bounded_json import bounded_json
from dpo_core.contract.errors import CheckpointError
from dpo_core.contract.regular_file import NotRegular, opened

LENGTH_BYTES = 8
MAX_HEADER_BYTES = (
    16 << 20
)  # 140 000 tensors in one file; the format's own limit of 100 MB takes 10 s and 1 GB to parse
MAX_DIMENSIONS = 64
BITS = 8  # of a byte
BYTES_OF = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}


def read_header(path: Path) -> dict[str, dict]:
    """Return tensor name -> {dtype, shape, data_offsets}. Raises ``CheckpointError`` with expected and found size in
    bytes.
    """
    try:
        with opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            header_bytes = int.from_bytes(file.read(LENGTH_BYTES), "little")
            raw = file.read(header_bytes) if header_bytes <= MAX_HEADER_BYTES else b""
    except NotRegular:
        raise CheckpointError(
            f"{path} is no regular file, as those of a checkpoint are. Remove it."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    if size < LENGTH_BYTES or header_bytes > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path} ({size} bytes) is not a safetensors file with a header of at most "
            f"{MAX_HEADER_BYTES >> 20} MiB. Fetch the checkpoint again."
        )
    if len(raw) < header_bytes:
        raise CheckpointError(
            f"{path} is cut off within its header: expected more than {LENGTH_BYTES + header_bytes} "
            f"bytes, got {size}. Fetch the checkpoint again."
        )
    try:
        header = bounded_json(raw)
        _check_notes(header.pop("__metadata__", None))
        end = _end_of_tensors(header)
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} has no valid safetensors header ({error}). Fetch the checkpoint again."
        ) from error
    expected = LENGTH_BYTES + header_bytes + end
    if size != expected:
        what = "is cut off" if size < expected else "has bytes after its end"
        raise CheckpointError(
            f"{path} {what}: expected {expected} bytes, got {size}. Fetch the checkpoint again."
        )
    return header


def _check_notes(notes: Any) -> None:
    """Raise ``ValueError`` for a file's notes that are not texts by name, which the format's own reader refuses."""
    if notes is not None and not (
        isinstance(notes, dict) and all(isinstance(text, str) for text in notes.values())
    ):
        raise ValueError("__metadata__ holds something else than texts")


def _end_of_tensors(header: dict[str, Any]) -> int:
    """Where the last tensor ends, in bytes after the header. Raises ``ValueError`` and its like for tensors that overlap,
    leave gaps, or have another size than their shape."""
    places = []
    for name, entry in header.items():
        (begin, end), shape = entry["data_offsets"], entry["shape"]
        sizes = (begin, end, *shape)
        if len(shape) > MAX_DIMENSIONS or not all(
            type(size) is int and 0 <= size < 1 << 63 for size in sizes
        ):
            raise ValueError(f"{name} has no sizes")
        num_values = math.prod(shape)
        num_bytes = num_values * BYTES_OF.get(entry["dtype"], 0)
        if begin > end or (entry["dtype"] in BYTES_OF and num_bytes != end - begin):
            raise ValueError(f"{name} fills {end - begin} bytes, its shape {num_bytes}")
        if num_values > BITS * (end - begin):  # of a type that is not known here
            raise ValueError(f"{name} has fewer bits than values")
        places.append((begin, end, name))
    reached = 0
    for begin, end, name in sorted(places):
        if begin != reached:
            raise ValueError(f"{name} begins at byte {begin}, the tensor before it ends at {reached}")
        reached = end
    return reached
