"""The whole stage in containers, on a real Prefect server: its flow is killed in mid-training and started again."""

import contextlib
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker
import pytest
from prefect.client.orchestration import get_client

from dpo_core.contract.job import JOB_FILE
from dpo_core.contract.job_registry import read_job
from dpo_core.contract.results import read_result
from flows.dpo_stage import dpo_stage
from tasks.handoff.schema import read_handoff
from tasks.image.image_ref import ImageRef
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.process import ProcessLauncher
from tasks.launch.run_job import run_job
from tests.containers.launch.stand_in import ROOT
from tests.containers.launch.watching import containers_of
from tests.flows.conftest import last_run, launches, tiny_config, tiny_inputs
from tests.prefect_database import new_prefect_home
from tests.step_process import metrics_of
from tests.waiting import wait_until

__all__ = ["tiny_inputs"]  # a fixture
pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]


def metrics(store: Path) -> list[dict]:
    folders = list((store / "train").glob("[!.]*"))
    return metrics_of(folders[0]) if folders else []


def prefect_log() -> list[str]:
    with get_client(sync_client=True) as client:
        return [entry.message for entry in client.read_logs(None)]


def test_a_killed_flow_started_again_twice_ends_as_if_nothing_had_been(
    tiny_inputs, trainer: ImageRef, tmp_path
):
    """Two flows at once need what the killed one has begun and all behind it: one container a step, for the training the one
    that was left, the weights of the process launcher to the bit, and the steps' logs in Prefect."""
    store = tmp_path / "store"
    config = tiny_config(
        tiny_inputs,
        store,
        train={"num_epochs": 30},
        image={"use": trainer.reference},
        compute={"launcher": "docker"},
        docker={"memory_gib": 4},
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(config.model_dump_json())  # JSON is YAML
    new_prefect_home(store / "prefect")
    flow = subprocess.Popen(
        [sys.executable, "-m", "flows.terminal", "run", str(recipe)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(lambda: len(metrics(store)) > 3, "the first steps of the training", of=flow)
    os.killpg(flow.pid, signal.SIGKILL)
    flow.wait()
    with ThreadPoolExecutor() as pool, contextlib.closing(docker.from_env()) as client:
        (left,) = containers_of(store, client)
        assert (left.status, left.labels["pairline.step"]) == ("running", "train")
        first, second = (pool.submit(dpo_stage, config) for _ in range(2))
        handoff = first.result()
        assert handoff == second.result()
        assert containers_of(store, client) == []
    assert set(launches(store).values()) == {1}
    assert read_handoff(Path(last_run(store)[1].outputs["handoff"])) == handoff
    (folder,) = (store / "train").glob("[!.]*")
    job = read_job(folder / JOB_FILE)
    as_process = job.at(tmp_path / "process")
    trained = run_job(as_process, ProcessLauncher(ComputeConfig(threads_per_process=1)))
    assert trained.weights_sha256 == read_result(job).weights_sha256
    log = prefect_log()
    assert any(line.startswith("| step ") for line in log)
    assert any(line.startswith("| train: ") for line in log)
