"""One cluster of two nodes for all tests of this folder."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator

import docker
import pytest
from docker.errors import ImageNotFound

from dpo_core.model import logprobs
from examples.slurm.private_cluster import PrivateCluster
from tests.containers.conftest import base_image, shared_engine
from tests.containers.launch.stand_in import build_stand_in
from tests.dpo_core.conftest import _one_thread
from tests.prefect_harness import prefect_server
from tests.programs.small_chunks import SMALL_CHUNKS_SITE, TOKENS, VOCABULARY
from tests.waiting import wait_until
from tests.warm.started import python_path

__all__ = ["_one_thread", "base_image", "prefect_server", "shared_engine"]  # fixtures of other folders
SecondsOf = Callable[[str], contextlib.AbstractContextManager[None]]


@pytest.fixture(scope="package")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateCluster]:
    cluster = PrivateCluster(tmp_path_factory.mktemp("slurm"))
    cluster.up()
    yield cluster
    cluster.down()


@pytest.fixture
def cluster(_cluster: PrivateCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateCluster]:
    """The cluster that this process's sbatch talks to. A test leaves no job to the next one, not even one that is ending."""
    monkeypatch.setenv("SLURM_CONF", str(_cluster.conf))
    yield _cluster
    wait_until(lambda: _cluster.jobs() == [], "the end of the test's jobs")


@pytest.fixture
def seconds_of(record_property: Callable[[str, object], None]) -> SecondsOf:
    """``with seconds_of("a fault, until what follows"):`` what that takes is a property of the test's report, for
    ``--junitxml``, and printed, for ``-rP``. docs/cluster.md has such figures beside its faults."""

    @contextlib.contextmanager
    def took(what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        seconds = round(time.monotonic() - began, 1)
        record_property(what, seconds)
        print(f"{what}: {seconds} s")

    return took


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of a few tokens at a time, here and in the steps that launchers start."""
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", TOKENS * VOCABULARY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([python_path(), str(SMALL_CHUNKS_SITE)]))


@pytest.fixture
def own_cluster(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PrivateCluster]:
    """One of the test's own, whose daemons it may kill: answers and nodes are given up soon."""
    made = PrivateCluster(tmp_path_factory.mktemp("slurm"), message_seconds=2)
    made.up()
    monkeypatch.setenv("SLURM_CONF", str(made.conf))
    yield made
    made.down()


@pytest.fixture(scope="session")
def image(shared_engine: docker.DockerClient, base_image: str) -> Iterator[str]:
    """A small stand-in for the trainer image, on the engine that the nodes have."""
    made = build_stand_in(shared_engine, base_image)
    yield made
    with contextlib.suppress(ImageNotFound):  # the same files give another worker of the tests the same image
        shared_engine.images.remove(made, force=True)
