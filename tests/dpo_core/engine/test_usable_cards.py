"""Cards that are here and cannot be used end a step in a sentence. There is no card here: files stand for its devices."""

import pytest
import torch

from dpo_core.contract.errors import ConfigError
from dpo_core.engine import usable_cards
from dpo_core.engine.distributed import start_accelerator
from dpo_core.engine.usable_cards import check_cards_are_usable


@pytest.fixture
def cards(tmp_path, monkeypatch):
    """A machine with two cards and an old driver."""
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    (tmp_path / "version").write_text("535.129.03\n")
    monkeypatch.setattr(usable_cards, "DEVICES", tmp_path)
    monkeypatch.setattr(usable_cards, "DRIVER_VERSION", tmp_path / "version")


@pytest.mark.usefixtures("cards")
def test_a_driver_that_is_too_old_is_named_with_what_is_needed(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(
        ConfigError,
        match=r"\(nvidia0, nvidia1\).*built for CUDA 13\.0.*driver is 535\.129\.03, and CUDA 13\.0 needs 580 or later",
    ):
        check_cards_are_usable({})


@pytest.mark.usefixtures("cards")
def test_so_is_a_pytorch_without_cuda_and_a_step_does_not_begin(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(
        ConfigError, match=r"was built without CUDA\. Install the packages of requirements/train-cuda"
    ):
        start_accelerator()


@pytest.mark.usefixtures("cards")
@pytest.mark.parametrize(
    "told", [{"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": "-1"}, {"ACCELERATE_USE_CPU": "true"}]
)
def test_who_wants_the_cpu_has_it(told):
    check_cards_are_usable(told)


def test_without_cards_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(usable_cards, "DEVICES", tmp_path)
    check_cards_are_usable({})


def test_fp32_is_exact_whatever_the_environment_says():
    """NVIDIA's images turn TF32 on."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        start_accelerator()
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)
