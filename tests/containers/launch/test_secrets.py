"""A stage in containers that reads a private data set with a token and uploads with one: neither shows anywhere."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from docker.errors import DockerException
from huggingface_hub import constants
from prefect.blocks.system import Secret
from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL
from requests.exceptions import RequestException

from flows.dpo_stage import dpo_stage
from tasks.image.image_ref import ImageRef
from tasks.launch.docker.config import OWN_NETWORK
from tasks.launch.docker.engine import ContainerEngine
from tests.containers.launch.watching import containers_of
from tests.flows.conftest import tiny_config, tiny_inputs
from tests.hub_server import LFS_FROM_BYTES, serve
from tests.server.test_secrets import files_with, tables_with
from tests.waiting import Pause

__all__ = ["tiny_inputs"]  # a fixture
pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]
READING, WRITING = "hf_planted_for_reading", "hf_planted_for_writing"


@contextlib.contextmanager
def seen_settings(client: docker.DockerClient, store: Path) -> Iterator[dict[str, str]]:
    """Step of a run below ``store`` -> all that ``docker inspect`` tells of its container, while the block runs."""
    seen: dict[str, str] = {}
    over = threading.Event()

    def look() -> None:
        between = Pause()
        while not over.is_set():
            with contextlib.suppress(
                DockerException, RequestException
            ):  # gone meanwhile, or the engine is busy
                for one in containers_of(store, client):
                    seen[one.labels["pairline.step"]] = str(client.api.inspect_container(one.id))
            between()

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        over.set()
        looking.join()


def own_network(client: docker.DockerClient) -> str:
    """This machine's address in the network that steps are put into."""
    ContainerEngine().find_network(OWN_NETWORK)
    return client.networks.list(names=[f"^{OWN_NETWORK}$"])[0].attrs["IPAM"]["Config"][0]["Gateway"]


def test_tokens_show_nowhere_after_a_stage_in_containers(
    tiny_inputs, trainer: ImageRef, tmp_path, monkeypatch
):
    store = tmp_path / "store"
    Secret(value=WRITING).save("planted-for-writing")
    with (
        contextlib.closing(docker.from_env()) as client,
        serve(own_network(client)) as hub,
        seen_settings(client, store) as seen,
    ):
        hub.read_tokens, hub.write_tokens = {READING}, {WRITING}
        rows = b""  # not of a size that the hub sends elsewhere for
        for row in (tiny_inputs / "pairs.jsonl").read_bytes().splitlines(keepends=True):
            rows += row if len(rows) + len(row) < LFS_FROM_BYTES else b""
        commit = hub.add_repo("org/prefs", {"rows.jsonl": rows}, "dataset", private=True)
        for name, value in {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": READING,
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # read from the environment at import only
        dpo_stage(
            tiny_config(
                tiny_inputs,
                store,
                train={"max_steps": 2},
                image={"use": trainer.reference},
                data={"sources": [{"source": "org/prefs", "revision": commit}]},
                upload={"repo_id": "org/dpo", "endpoint": hub.endpoint, "token_block": "planted-for-writing"},
                compute={"launcher": "docker"},
                docker={"memory_gib": 4},
            )
        )
        assert hub.commits_made == 1
    assert set(seen) >= {"fetch", "mix", "reference", "train", "export", "evaluate"}
    networks = {step: "'NetworkMode': 'pairline'" in settings for step, settings in seen.items()}
    assert [step for step, has_network in networks.items() if has_network] == ["fetch"]
    database = Path(PREFECT_SERVER_DATABASE_CONNECTION_URL.value().partition(":///")[2])
    for token in (READING, WRITING):
        assert not [step for step, settings in seen.items() if token in settings]
        assert not files_with(token.encode(), store)
        assert not tables_with(token, database)
    assert files_with(b"org/prefs", store)
