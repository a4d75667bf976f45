"""Safetensors written tensor by tensor: the very bytes of safetensors' own writer, and the hash of what is on the disk."""

import pytest
import torch
from safetensors.torch import save_file

from dpo_core.contract.store import sha256_file
from dpo_core.engine.tensor_file import HeaderEntry, TensorFile, in_file_order

TENSORS = {
    "weight": torch.arange(6.0).view(2, 3),
    "b": torch.ones(3, dtype=torch.bfloat16),
    "a.é": torch.zeros(1),
    "step": torch.tensor(7.0),
    "big": torch.arange(4),
    "flag": torch.tensor([True]),
    "turned": torch.arange(6.0).view(2, 3).t(),
    "empty": torch.zeros(0, 5),
}
ENTRIES = {name: HeaderEntry(tuple(tensor.shape), tensor.dtype) for name, tensor in TENSORS.items()}


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
@pytest.mark.parametrize("pieces", [1, 2])
def test_the_bytes_are_those_of_safetensors(tmp_path, metadata, pieces):
    with TensorFile(tmp_path / "ours", ENTRIES, metadata) as file:
        for name in in_file_order(ENTRIES):
            for values in TENSORS[name].reshape(-1).tensor_split(pieces):
                file.add(values)
        sha256 = file.finish()
    tensors = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    save_file(tensors, tmp_path / "theirs", metadata=metadata)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert sha256 == sha256_file(tmp_path / "ours")
