"""GGUF and pickle weights -> safetensors that stock transformers loads with the same numbers."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo_core.contract.data_jobs import ConvertJob
from dpo_core.contract.errors import CheckpointError
from tests.tiny_gguf import make_gguf
from tests.tiny_models import CHATML, make_model
from tests.tiny_stage import run_here


def test_gguf_becomes_a_float32_checkpoint(tmp_path: Path) -> None:
    source = tmp_path / "gguf"
    source.mkdir()
    embedding = make_gguf(source / "tiny.gguf")
    result = run_here(
        ConvertJob(source_dir=source, source_sha256="s", gguf_file="tiny.gguf").at(tmp_path / "a")
    )
    model = AutoModelForCausalLM.from_pretrained(result.path)
    tokenizer = AutoTokenizer.from_pretrained(result.path)
    np.testing.assert_array_equal(model.get_input_embeddings().weight.detach().numpy(), embedding)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert getattr(model.config, "quantization_config", None) is None
    assert tokenizer.chat_template == CHATML
    assert tokenizer.decode(tokenizer.encode("The sea, the sky: naïve!")) == "The sea, the sky: naïve!"
    again = run_here(
        ConvertJob(source_dir=source, source_sha256="s", gguf_file="tiny.gguf").at(tmp_path / "b")
    )
    assert again.files == result.files
    assert (
        result.path / "model.safetensors"
    ).stat().st_mode & 0o044 == 0o044  # readable for a step's other user


def test_a_cut_gguf_is_named(tmp_path: Path) -> None:
    make_gguf(tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"tiny\.gguf \(\d+ bytes\) cannot be read as a GGUF"):
        run_here(
            ConvertJob(source_dir=tmp_path, source_sha256="s", gguf_file="tiny.gguf").at(tmp_path / "out")
        )


@pytest.mark.parametrize(
    "names",
    [("pytorch_model.bin",), ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")],
)
def test_pickle_becomes_safetensors_with_the_same_numbers(tmp_path: Path, names: tuple[str, ...]) -> None:
    source = make_model(tmp_path / "model")
    expected = load_file(source / "model.safetensors")
    expected["lm_head.weight"] = expected["model.embed_tokens.weight"]  # tied: one storage under two names
    keys = sorted(expected)
    for number, name in enumerate(names):
        torch.save({key: expected[key] for key in keys[number :: len(names)]}, source / name)
    (source / "model.safetensors").unlink()
    result = run_here(
        ConvertJob(source_dir=source, source_sha256="s", pickle_files=names).at(tmp_path / "out")
    )
    model = AutoModelForCausalLM.from_pretrained(result.path)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0)
    assert not [name for name in result.files if name.endswith(".bin")]
    assert ("model.safetensors.index.json" in result.files) == (len(names) > 1)


class RunsCode:
    """Unpickled by a plain ``pickle.load`` it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(
        pickle.dumps({"weight": RunsCode(tmp_path / "planted")}, protocol=2)
    )
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin cannot be loaded as plain weights"):
        run_here(
            ConvertJob(source_dir=tmp_path, source_sha256="s", pickle_files=("pytorch_model.bin",)).at(
                tmp_path / "out"
            )
        )
    assert not (tmp_path / "planted").exists()
    assert not (tmp_path / "out" / "snapshot").exists()


UNFIT = {
    "cut off": (None, "cannot be loaded as plain weights"),
    "sparse": (lambda: {"a.weight": torch.eye(4).to_sparse()}, r"a\.weight as float32 \(sparse_coo"),
    "quantised": (
        lambda: {"a.weight": torch.quantize_per_tensor(torch.eye(4), 0.1, 0, torch.qint8)},
        r"a\.weight as qint8",
    ),
    "complex": (lambda: {"a.weight": torch.eye(4).to(torch.complex64)}, r"a\.weight as complex64"),
    "without values": (lambda: {"a.weight": torch.empty(2, device="meta")}, r"on meta\)"),
    "numbers for names": (lambda: {5: torch.zeros(2)}, "holds no state dict"),
    "a checkpoint of a trainer": (lambda: {"state_dict": {"a": torch.zeros(2)}}, "holds no state dict"),
}


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize(("made", "sentence"), UNFIT.values(), ids=UNFIT)
def test_a_pickle_of_something_else_than_plain_weights_is_named(
    tmp_path: Path, made: Callable[[], dict] | None, sentence: str
) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(made() if made else {"a": torch.zeros(4000)}, path)
    if made is None:
        path.write_bytes(path.read_bytes()[:5000])
    job = ConvertJob(source_dir=tmp_path, source_sha256="s", pickle_files=(path.name,))
    with pytest.raises(CheckpointError, match=sentence):
        run_here(job.at(tmp_path / "out"))
