"""The header of a safetensors file, read without loading a tensor: tells a cut download before anything is trained.

Format (huggingface/safetensors): 8 bytes little-endian length N, N bytes of JSON {tensor: {dtype, shape, data_offsets}},
then the tensors' bytes, without gaps, to the end of the file.
"""

import json
from pathlib import Path

from dpo_core.errors import CheckpointError

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the format's own limit


def read_header(path: Path) -> dict[str, dict]:
    """Tensor name -> {dtype, shape, data_offsets}. Raises ``CheckpointError`` with expected and found size in bytes."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(LENGTH_BYTES), "little")
            raw = file.read(header_bytes) if header_bytes <= MAX_HEADER_BYTES else b""
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    if size < LENGTH_BYTES or header_bytes > MAX_HEADER_BYTES:
        raise CheckpointError(f"{path} ({size} bytes) is not a safetensors file. Fetch the checkpoint again.")
    if len(raw) < header_bytes:
        raise CheckpointError(f"{path} is cut off within its header: expected more than {LENGTH_BYTES + header_bytes} "
                              f"bytes, got {size}. Fetch the checkpoint again.")
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(f"{path} has no valid safetensors header ({error}). Fetch the checkpoint again.") from error
    expected = LENGTH_BYTES + header_bytes + end
    if size != expected:
        what = "is cut off" if size < expected else "has bytes after its end"
        raise CheckpointError(f"{path} {what}: expected {expected} bytes, got {size}. Fetch the checkpoint again.")
    return header
