"""Slurm's programs as a test records their answers, and a step that asks them."""

import pytest

from tasks.launch.own_folder import make_own_folder
from tests.slurm_cluster.small_step import SmallStep
from tests.tasks.launch.slurm.recorded import RecordedSlurm


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> RecordedSlurm:
    return RecordedSlurm(tmp_path / "bin", monkeypatch)


@pytest.fixture
def step(tmp_path) -> SmallStep:
    step = SmallStep(tmp_path, "", 1, {"cpus_per_node": 2, "poll_seconds": 0.1})
    step.command()
    make_own_folder(step.folder)
    step.record.mkdir()
    return step
