"""Safetensors written tensor by tensor: the very bytes of safetensors' own writer; other names are refused."""

import pytest
import torch
from safetensors.torch import save_file

from dpo_core.contract.errors import StoreError
from dpo_core.engine.tensor_file import StoredTensor, open_tensors, whole, write_tensors

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


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_the_bytes_are_those_of_safetensors(tmp_path, metadata):
    write_tensors(tmp_path / "ours", {name: whole(tensor) for name, tensor in TENSORS.items()}, metadata)
    save_file(
        {name: tensor.contiguous() for name, tensor in TENSORS.items()},
        tmp_path / "theirs",
        metadata=metadata,
    )
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_tensors_come_back_one_by_one(tmp_path):
    write_tensors(tmp_path / "file", {name: whole(tensor) for name, tensor in TENSORS.items()})
    with open_tensors(tmp_path / "file", TENSORS) as read:
        for name, tensor in TENSORS.items():
            assert torch.equal(read(name), tensor)
            assert read(name).dtype == tensor.dtype


def test_every_rank_gathers_in_the_files_order_and_one_writes(tmp_path):
    gathered = []

    def stored(name: str) -> StoredTensor:
        tensor = TENSORS[name]
        return StoredTensor(tuple(tensor.shape), tensor.dtype, lambda: gathered.append(name) or tensor)

    tensors = {name: stored(name) for name in TENSORS}
    write_tensors(tmp_path / "file", tensors)
    by_the_writer = list(gathered)
    gathered.clear()
    write_tensors(None, tensors)
    assert gathered == by_the_writer
    assert len(gathered) == len(TENSORS)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_file_of_other_tensors_is_refused(tmp_path):
    write_tensors(tmp_path / "file", {"a": whole(torch.zeros(1)), "b": whole(torch.zeros(1))})
    with (
        pytest.raises(StoreError, match=r"holds other tensors than the run: \['b', 'c'\]"),
        open_tensors(tmp_path / "file", ["a", "c"]),
    ):
        pass
