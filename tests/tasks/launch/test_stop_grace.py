"""How long a training may take to end: from the size of its checkpoints and what the disk takes."""

from types import SimpleNamespace

import pytest

from dpo_core.contract.config import AdapterConfig, OptimConfig
from tasks.launch import stop_grace
from tasks.launch.stop_grace import checkpoint_bytes, grace_of, grace_seconds, write_bytes_per_second


def test_two_checkpoints_and_half_a_minute():
    eight_billion = checkpoint_bytes(8_000_000_000, OptimConfig())
    assert eight_billion == 96_000_000_000
    assert grace_seconds(eight_billion, 2e9) == 30 + 2 * 48
    assert (
        grace_seconds(checkpoint_bytes(8_000_000_000, OptimConfig(optimizer="adamw_8bit")), 2e9)
        == 30 + 2 * 24
    )
    assert grace_seconds(eight_billion, 0.0) == 30


def test_the_speed_is_that_of_a_disk_and_nothing_is_left_there(tmp_path):
    assert 1e6 < write_bytes_per_second(tmp_path) < 1e12
    assert not list(tmp_path.iterdir())
    assert write_bytes_per_second(tmp_path / "none") == 0.0


@pytest.mark.parametrize(("kind", "expected"), [("none", 30 + 2 * 12 * 500 // 100), ("lora", 30)])
def test_it_follows_from_the_files_of_the_sft_checkpoint(tmp_path, monkeypatch, kind, expected):
    for number in range(2):
        (tmp_path / f"model-{number}.safetensors").write_bytes(b"x" * 500)  # 250 parameters in half precision
    monkeypatch.setattr(stop_grace, "write_bytes_per_second", lambda folder: 100.0)
    job = SimpleNamespace(
        adapter=AdapterConfig(kind=kind),
        optim=OptimConfig(),
        checkpoint=SimpleNamespace(path=tmp_path),
        out_dir=tmp_path,
    )
    assert grace_of(job) == expected
