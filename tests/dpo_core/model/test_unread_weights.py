"""Which checkpoints every rank reads its own part of, and under which names."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpo_core.contract.errors import StoreError
from dpo_core.contract.refs import CheckpointRef
from dpo_core.model.load import load_model
from dpo_core.model.tensor_slices import PARTS, TensorSlices
from dpo_core.model.unread_weights import take_unread
from tests.tiny_architectures import PACKED, tiny
from tests.tiny_models import make_model
from tests.tiny_stage import checkpoint_ref


def ref(folder):
    return CheckpointRef(path=folder, source="x", fingerprint="x", tokenizer_fingerprint="x")


def filled(model):
    unread = take_unread(model)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if unread.fill(name, half := tensor.detach().view(-1)[1:], 1):
            assert unread.fill(name, tensor.detach().view(-1)[: tensor.numel() - len(half)])
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("files", [1, 2])
def test_filled_in_parts_it_is_the_model_that_transformers_reads(tmp_path, tied, dtype, files):
    folder = make_model(tmp_path, tie_word_embeddings=tied)
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    if files == 2:
        (folder / "model.safetensors").unlink()
        for number in range(2):
            some = dict(list(tensors.items())[number::2])
            save_file(
                some, folder / f"model-0000{number + 1}-of-00002.safetensors", metadata={"format": "pt"}
            )
        weight_map = {
            name: f"model-0000{number % 2 + 1}-of-00002.safetensors" for number, name in enumerate(tensors)
        }
        (folder / "model.safetensors.index.json").write_text(
            f'{{"metadata": {{}}, "weight_map": {weight_map!r}}}'.replace("'", '"')
        )
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = ref(folder)
    read, ours = load_model(checkpoint), filled(load_model(checkpoint, read_weights=False, in_parts=True))
    expected = dict(read.named_parameters())
    assert {name: p.dtype for name, p in ours.named_parameters()} == dict.fromkeys(expected, torch.float32)
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, expected[name]), name


def test_what_the_files_hold_otherwise_is_read_by_transformers(tmp_path):
    folder = make_model(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    renamed = {name.replace("model.layers.0.", "layers.0."): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    model = load_model(checkpoint_ref(folder), read_weights=False, in_parts=True)
    assert take_unread(model) is None


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_experts_are_read_in_parts(tmp_path, name):
    """Whether files hold them one by one or stacked, as gpt-oss' do; in several files. A part begins and ends within an
    expert."""
    tiny(PACKED[name]).save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    checkpoint = ref(tmp_path)
    read, ours = load_model(checkpoint), filled(load_model(checkpoint, read_weights=False, in_parts=True))
    expected = dict(read.named_parameters()) | dict(read.named_buffers())
    assert any(tensor.dim() == 3 for tensor in expected.values())
    for key, tensor in (dict(ours.named_parameters()) | dict(ours.named_buffers())).items():
        assert torch.equal(tensor, expected[key]), key


def test_experts_that_lie_otherwise_in_the_files_are_read_by_transformers(tmp_path):
    """One is missing, one has another type than the others; or their matrices are turned round when they are read."""
    tiny(PACKED["mixtral"]).save_pretrained(tmp_path / "mixtral")
    file = tmp_path / "mixtral" / "model.safetensors"
    whole = load_file(file)
    name = next(name for name in whole if ".experts." in name)
    for other in ({}, {name: whole[name].half()}):
        tensors = {key: value for key, value in whole.items() if key != name} | other
        save_file(tensors, file, metadata={"format": "pt"})
        model = load_model(ref(tmp_path / "mixtral"), read_weights=False, in_parts=True)
        assert take_unread(model) is None
    save_file(whole, file, metadata={"format": "pt"})
    assert take_unread(load_model(ref(tmp_path / "mixtral"), read_weights=False, in_parts=True))


@pytest.mark.parametrize("start", [0, 3])
def test_pieces_that_make_no_whole_are_refused(tmp_path, start):
    metadata = {PARTS: f'{{"a": [{start}, [4]]}}'}
    save_file({"a": torch.ones(2)}, tmp_path / "x", metadata=metadata)
    with pytest.raises(StoreError, match="a with a gap or an overlap: 2 of its 4 values"):
        TensorSlices([tmp_path / "x"])


def test_what_is_no_safetensors_file_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"x" * 100)
    with pytest.raises(StoreError, match="is no safetensors file"):
        TensorSlices([tmp_path / "x"])


@pytest.mark.parametrize(
    "header",
    [{"a": 3}, {"a": {"dtype": "F32"}}, {"a": {"dtype": "F32", "shape": 4, "data_offsets": [0, 4]}},
     {"a": {"dtype": "F32", "shape": [1], "data_offsets": "04"}}, {"__metadata__": [1]}],
)  # fmt: skip
def test_a_header_of_another_shape_is_refused(tmp_path, header):
    text = json.dumps(header).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(StoreError, match="has a header that no safetensors file has"):
        TensorSlices([tmp_path / "x"])
