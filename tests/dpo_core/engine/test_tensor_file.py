"""Safetensors written tensor by tensor: the very bytes of safetensors' own writer, and the hash of what is on the disk."""

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dpo_core.contract.store import sha256_file
from dpo_core.engine import tensor_file
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
@pytest.mark.parametrize("worth_a_thread", [1, tensor_file.WORTH_A_THREAD])
def test_the_bytes_are_those_of_safetensors(tmp_path, monkeypatch, metadata, pieces, worth_a_thread):
    monkeypatch.setattr(tensor_file, "WORTH_A_THREAD", worth_a_thread)
    with TensorFile(tmp_path / "ours", ENTRIES, metadata) as file:
        for name in in_file_order(ENTRIES):
            for values in TENSORS[name].reshape(-1).tensor_split(pieces):
                file.add(values)
        sha256 = file.finish()
    tensors = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    save_file(tensors, tmp_path / "theirs", metadata=metadata)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert sha256 == sha256_file(tmp_path / "ours")


def test_values_may_change_once_they_were_added(tmp_path):
    """They are hashed beside the writing, and not after it."""
    values = torch.zeros(tensor_file.WORTH_A_THREAD)
    with TensorFile(tmp_path / "file", {"a": HeaderEntry((4 * len(values),), values.dtype)}) as file:
        for number in range(4):
            values.fill_(number)
            file.add(values)
        values.fill_(9)
        sha256 = file.finish()
    assert sha256 == sha256_file(tmp_path / "file")


def test_a_full_disk_is_an_error_of_the_writer_and_leaves_no_thread(monkeypatch):
    values, before, opened = torch.zeros(tensor_file.WORTH_A_THREAD), threading.active_count(), Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: opened(self, mode.replace("x", "w")))

    def write() -> None:
        with TensorFile(Path("/dev/full"), {"a": HeaderEntry((len(values),), values.dtype)}) as file:
            file.add(values)

    with pytest.raises(OSError, match="No space left"):
        write()
    assert threading.active_count() == before
