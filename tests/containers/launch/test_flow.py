"""The whole stage in containers, on a real Prefect server: it reads private rows with a token and uploads with another,
is killed in mid-training, and is started again twice at once."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest
from docker.errors import DockerException
from huggingface_hub import constants
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_DATABASE_CONNECTION_URL
from requests.exceptions import RequestException

from dpo_core.contract.job import JOB_FILE
from dpo_core.contract.job_registry import read_job
from dpo_core.contract.results import read_result
from flows.dpo_stage import dpo_stage
from flows.settings.stage_config import StageConfig
from tasks.handoff.schema import RLVRHandoff, read_handoff
from tasks.image.image_ref import ImageRef
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.docker.config import OWN_NETWORK
from tasks.launch.docker.engine import ContainerEngine
from tasks.launch.process import ProcessLauncher
from tasks.launch.run_job import run_job
from tests.containers.launch.stand_in import ROOT
from tests.containers.launch.watching import containers_of
from tests.flows.conftest import last_run, launches, tiny_config, tiny_inputs
from tests.hub_server import LFS_FROM_BYTES, Hub, serve
from tests.server.test_secrets import files_with, tables_with
from tests.step_process import metrics_of
from tests.waiting import Pause, beside, wait_until

__all__ = ["tiny_inputs"]  # a fixture
pytestmark = pytest.mark.integration
READING, WRITING, BLOCK = "hf_planted_for_reading", "hf_planted_for_writing", "planted-for-writing"


@dataclass(frozen=True)
class Ended:
    """What a killed stage left at once, and how the two flows that were started after it ended."""

    store: Path
    left: list[tuple[str, str]]  # its containers: status and step
    handoffs: list[RLVRHandoff]
    commits: int  # of the repository that was uploaded to
    seen: dict[str, str]  # by step, all that ``docker inspect`` told of its container


@contextlib.contextmanager
def seen_settings(client: docker.DockerClient, store: Path) -> Iterator[dict[str, str]]:
    """Step of a run below ``store`` -> all that ``docker inspect`` tells of its container, while the block runs."""
    seen: dict[str, str] = {}

    def look(over: threading.Event) -> None:
        between = Pause()
        while not over.is_set():
            with contextlib.suppress(
                DockerException, RequestException
            ):  # gone meanwhile, or the engine is busy
                for one in containers_of(store, client):
                    seen[one.labels["pairline.step"]] = str(client.api.inspect_container(one.id))
            between()

    with beside(look):
        yield seen


def own_network(client: docker.DockerClient) -> str:
    """This machine's address in the network that steps are put into."""
    ContainerEngine().find_network(OWN_NETWORK)
    return client.networks.list(names=[f"^{OWN_NETWORK}$"])[0].attrs["IPAM"]["Config"][0]["Gateway"]


def private_rows(hub: Hub, pairs: Path) -> dict[str, str]:
    """A private data set of the hub's. -> it as a source"""
    rows = b""  # not of a size that the hub sends elsewhere for
    for row in pairs.read_bytes().splitlines(keepends=True):
        rows += row if len(rows) + len(row) < LFS_FROM_BYTES else b""
    commit = hub.add_repo("org/prefs", {"rows.jsonl": rows}, "dataset", private=True)
    return {"source": "org/prefs", "revision": commit}


def kill_in_training(config: StageConfig, recipe: Path) -> None:
    """Start the flow in a process of its own and kill it with -9 once the training has taken steps."""
    recipe.write_text(config.model_dump_json())  # JSON is YAML
    flow = subprocess.Popen(
        [sys.executable, "-m", "flows.terminal", "run", str(recipe)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PREFECT_API_URL": str(PREFECT_API_URL.value())},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(lambda: len(metrics(config.store.root)) > 3, "the first steps of the training", of=flow)
    os.killpg(flow.pid, signal.SIGKILL)
    flow.wait()


def metrics(store: Path) -> list[dict]:
    folders = list((store / "train").glob("[!.]*"))
    return metrics_of(folders[0]) if folders else []


@pytest.fixture(scope="module")
def ended(
    prefect_server: None, tiny_inputs: Path, trainer: ImageRef, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ended]:
    """Two flows at once need what a killed one has begun and all behind it."""
    folder = tmp_path_factory.mktemp("killed")
    store = folder / "store"
    Secret(value=WRITING).save(BLOCK)
    with (
        contextlib.closing(docker.from_env()) as client,
        serve(own_network(client)) as hub,
        seen_settings(client, store) as seen,
        pytest.MonkeyPatch.context() as patched,
        ThreadPoolExecutor() as pool,
    ):
        hub.read_tokens, hub.write_tokens = {READING}, {WRITING}
        settings = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": READING}
        for name, value in settings.items():
            patched.setenv(name, value)
        patched.setattr(constants, "HF_HUB_DISABLE_XET", True)  # read from the environment at import only
        config = tiny_config(
            tiny_inputs,
            store,
            train={"num_epochs": 60},
            image={"use": trainer.reference},
            data={"sources": [private_rows(hub, tiny_inputs / "pairs.jsonl")]},
            upload={"repo_id": "org/dpo", "endpoint": hub.endpoint, "token_block": BLOCK},
            compute={"launcher": "docker"},
            docker={"memory_gib": 4},
        )
        kill_in_training(config, folder / "recipe.yaml")
        left = [(one.status, one.labels["pairline.step"]) for one in containers_of(store, client)]
        flows = [pool.submit(dpo_stage, config) for _ in range(2)]
        handoffs = [flow.result() for flow in flows]
        assert containers_of(store, client) == []
        yield Ended(store, left, handoffs, len(hub.repos["model", "org/dpo"].commits), dict(seen))


def prefect_log() -> list[str]:
    with get_client(sync_client=True) as client:
        return [entry.message for entry in client.read_logs(None)]


def test_a_killed_flow_started_again_twice_ends_as_if_nothing_had_been(ended: Ended, tmp_path: Path):
    """One container a step, for the training the one that was left, the weights of the process launcher to the bit, one
    upload, and the steps' logs in Prefect."""
    assert ended.left == [("running", "train")]
    first, second = ended.handoffs
    assert first == second
    assert set(launches(ended.store).values()) == {1}
    assert ended.commits == 2  # the hub's own first one, and the upload
    assert read_handoff(Path(last_run(ended.store)[1].outputs["handoff"])) == first
    (folder,) = (ended.store / "train").glob("[!.]*")
    job = read_job(folder / JOB_FILE)
    as_process = job.at(tmp_path / "process")
    trained = run_job(as_process, ProcessLauncher(ComputeConfig(threads_per_process=1)))
    assert trained.weights_sha256 == read_result(job).weights_sha256
    log = prefect_log()
    assert any(line.startswith("| step ") for line in log)
    assert any(line.startswith("| train: ") for line in log)


def test_tokens_show_nowhere(ended: Ended):
    assert set(ended.seen) >= {"fetch", "mix", "reference", "train", "export", "evaluate"}
    networks = {step: "'NetworkMode': 'pairline'" in settings for step, settings in ended.seen.items()}
    assert [step for step, has_network in networks.items() if has_network] == ["fetch"]
    database = Path(PREFECT_SERVER_DATABASE_CONNECTION_URL.value().partition(":///")[2])
    for token in (READING, WRITING):
        assert not [step for step, settings in ended.seen.items() if token in settings]
        assert not files_with(token.encode(), ended.store)
        assert not tables_with(token, database)
    assert files_with(b"org/prefs", ended.store)
