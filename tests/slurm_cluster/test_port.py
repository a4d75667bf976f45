"""The port of a training's ranks is somebody else's on the first node: a crash, and another start takes another port."""

import socket
from pathlib import Path

import pytest

from dpo_core.contract.errors import StepCrashed
from dpo_core.in_slurm import FIRST_PORT
from examples.slurm.private_cluster import PrivateCluster
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.launcher import launcher_for
from tasks.launch.launchers import LauncherSections
from tasks.launch.run_job import in_store, run_job
from tasks.launch.slurm.config import SlurmConfig
from tests.slurm_cluster.conftest import SecondsOf
from tests.tiny_stage import TinyStage

pytestmark = pytest.mark.integration
RANKS = {"machines": 2, "num_processes": 2, "threads_per_process": 1}


def test_a_port_that_is_taken_on_the_first_node_is_a_crash_and_the_next_start_takes_another(
    cluster: PrivateCluster, tmp_path, seconds_of: SecondsOf
):
    """A port goes by its job's id, so that the next job's is known."""
    stage = TinyStage.make(tmp_path / "stage")
    job = stage.train_job(Path("unset"), processes=2, per_device=1, max_steps=2)
    training = in_store(job, tmp_path / "store")
    launcher = launcher_for(
        ComputeConfig(launcher="slurm", **RANKS), LauncherSections(slurm=SlurmConfig(poll_seconds=1))
    )
    last = cluster.ask("sbatch", "--parsable", "--output=/dev/null", "--wrap", "true")
    with socket.socket() as somebody:
        somebody.bind(("", FIRST_PORT + int(last) + 1))
        somebody.listen()
        taken = pytest.raises(StepCrashed, match="could not meet, as their port is taken")
        with seconds_of("a port that is taken, until the step has crashed"), taken as crashed:
            run_job(training, launcher)
        assert crashed.value.retryable
        assert run_job(training, launcher).steps == 2
    assert cluster.jobs() == []
