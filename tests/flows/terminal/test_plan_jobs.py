"""The jobs of a cluster in a plan: every step that is one, in its order, and the conversions that a checkpoint needs."""

import json
import re
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from dpo_core.contract.data_jobs import FetchJob
from dpo_core.contract.job_registry import JOBS
from flows.terminal import checkpoint_time
from flows.terminal.cli import app

SURE = ["mix", "reference", "train", "export", "evaluate", "answer"]
# A partition's cores and limit are told, so that no cluster has to be.
CLUSTER = {"cpus_per_node": 8, "time_limit_minutes": 600}


@pytest.fixture(autouse=True)
def _no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a plan needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(checkpoint_time, "write_bytes_per_second", lambda folder: 2e9)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def planned(checkpoint: dict, slurm: dict = CLUSTER, **more: dict) -> tuple[list[str], str]:
    """The steps whose jobs a plan prints, and all that it prints."""
    sections = {"checkpoint": checkpoint, "data": {"sources": [{"source": "org/set"}]}, **more}
    sections |= {"compute": {"launcher": "slurm"}, "slurm": slurm}
    Path("recipe.yaml").write_text(json.dumps(sections))
    said = CliRunner().invoke(app, ["plan", "recipe.yaml"]).output
    steps = re.findall(r"^# (\w+): not checked: .*\nsbatch --job-name=", said, re.MULTILINE)
    assert steps == re.findall(r"-m dpo_core (\w+) ", said)
    return steps, said


def test_every_step_that_is_a_job_is_printed_with_its_call_of_sbatch(tmp_path: Path):
    steps, said = planned({"source": "org/model-7B"})
    assert steps == ["convert", "dequantise", *SURE]
    assert said.count("which is known once it is fetched") == 2


def test_a_step_that_is_sent_to_the_cluster_is_a_job_of_the_plan(tmp_path: Path):
    steps, _ = planned({"source": "org/model-7B"}, CLUSTER | {"on_this_machine": ["convert", "mix"]})
    assert steps == ["dequantise", "rehearse", FetchJob.step, *SURE[1:]]
    assert set(steps) | {"convert", "mix"} == set(JOBS) - {"judge", "benchmark"}


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, []), (torch.float8_e4m3fn, ["dequantise"])])
def test_a_checkpoint_on_this_machine_is_looked_at(tmp_path: Path, dtype: torch.dtype, expected: list[str]):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a.weight": torch.zeros(2, 2).to(dtype)}, folder / "model.safetensors")
    steps, said = planned({"source": str(folder)})
    assert steps == [*expected, *SURE]
    assert "which is known once it is fetched" not in said


def test_a_gguf_file_is_converted(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/a.gguf").touch()
    assert planned({"source": str(tmp_path / "model")})[0] == ["convert", *SURE]
    steps, said = planned({"source": "org/model-7B", "gguf_file": "a.gguf"})
    assert steps == ["convert", *SURE]
    assert "which is known once it is fetched" not in said


def test_a_reference_of_its_own_may_be_the_one_that_is_converted(tmp_path: Path):
    for name, file in (("model", "model.safetensors"), ("reference", "a.gguf")):
        (tmp_path / name).mkdir()
        if file.endswith("gguf"):
            (tmp_path / name / file).touch()
        else:
            save_file({"a.weight": torch.zeros(2, 2)}, tmp_path / name / file)
    named = {"reference": {"source": str(tmp_path / "reference")}}
    assert planned({"source": str(tmp_path / "model")}, **named)[0] == ["convert", *SURE]
