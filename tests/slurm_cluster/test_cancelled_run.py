"""A run of `pairline up` is cancelled while its training is a job of a cluster; started again, it goes on from there."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.states import Cancelling

from dpo_core.contract.errors import Preempted
from dpo_core.contract.results import ERROR_FILE, RESULT_FILE
from examples.slurm.private_cluster import PrivateCluster
from flows.serve.run_processes import processes_of_run
from tasks.launch.own_folder import own_folder
from tests.flows.conftest import step_processes
from tests.left_behind import folder_in_memory
from tests.server.conftest import Installation, installed, wait_until
from tests.slurm_cluster.conftest import SecondsOf
from tests.tiny_stage import tiny_values, write_inputs

pytestmark = pytest.mark.integration
MORE_STEPS = 20  # than a run began with, before it is cancelled


@pytest.fixture
def installation(cluster: PrivateCluster) -> Iterator[Installation]:
    """Whose worker talks to the cluster."""
    with (
        tempfile.TemporaryDirectory(prefix="home-", dir=folder_in_memory()) as home,
        installed(Path(home)) as made,
    ):
        yield made


def checkpoints(training: Path) -> list[int]:
    """Steps of the whole ones."""
    return sorted(int(one.name.removeprefix("step-")) for one in training.glob("checkpoints/step-*"))


def steps_taken(store: Path) -> int:
    """By the training, as its metrics say."""
    lines = [line for file in store.glob("train/*/metrics.jsonl") for line in file.read_text().splitlines()]
    return max((json.loads(line).get("step", 0) for line in lines), default=0)


def began_from(training: Path) -> str:
    """The checkpoint that the job's newest start found, as its batch script wrote down."""
    started = (own_folder(training) / "slurm").glob("*/started")
    return (*max(started, key=lambda file: file.stat().st_mtime).read_text().split(), "")[3]


def test_a_cancelled_run_keeps_a_checkpoint_leaves_no_job_and_goes_on_when_it_is_started_again(
    installation: Installation, cluster: PrivateCluster, tmp_path: Path, seconds_of: SecondsOf
):
    """No checkpoint is due for hours: those that are there were written because somebody cancelled."""
    store = tmp_path / "store"
    config = tiny_values(
        write_inputs(tmp_path / "inputs"),
        store,
        train={"num_epochs": 4000, "checkpoint_every": 90_000},
        compute={"launcher": "slurm", "machines": 2, "num_processes": 2},
        slurm={"poll_seconds": 1},
    )
    kept = 0
    for _ in range(2):
        run = installation.start("dpo-stage/manual", {"config": config})
        wait_until(
            lambda at=kept: steps_taken(store) >= at + MORE_STEPS,
            "steps of the training",
            lambda run=run: installation.describe(run),
        )
        (training,) = store.glob("train/[!.]*")
        assert [state for name, state in cluster.jobs() if "train" in name] == ["RUNNING"]
        assert began_from(training) == (f"step-{kept:08d}" if kept else "")
        with installation.client() as client, seconds_of("cancelled in the UI, until nothing is left"):
            client.set_flow_run_state(run, Cancelling())
            assert installation.wait_for_end(run).state.is_cancelled()
            wait_until(
                lambda run=run: (
                    not cluster.jobs() and not processes_of_run(run) and not step_processes(store)
                ),
                "the end of its job and its processes",
            )
        assert json.loads((training / ERROR_FILE).read_text())["kind"] == Preempted.kind
        assert not (training / RESULT_FILE).exists()
        assert checkpoints(training)[-1] >= kept + MORE_STEPS
        kept = checkpoints(training)[-1]
        assert cluster.jobs() == []
