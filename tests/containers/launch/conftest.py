"""An engine of the tests' own with a stand-in for the trainer image, for as long as this folder's tests take."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator

import docker
import pytest

from tests.containers.launch.private_engine import PrivateEngine, private_engine
from tests.containers.launch.stand_in import ContainerStep, build_stand_in


@pytest.fixture(scope="package")
def own_engine() -> Iterator[PrivateEngine]:
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("an engine of the tests' own takes root and dockerd (Debian: docker.io)")
    with private_engine() as running:
        yield running


@pytest.fixture(scope="package")
def image(own_engine: PrivateEngine, shared_engine: docker.DockerClient, base_image: str) -> str:
    """The stand-in's id. It starts from the trainer image's base, taken over from this machine's own engine."""
    with tempfile.TemporaryFile() as tar:
        for chunk in shared_engine.images.get(base_image).save():
            tar.write(chunk)
        tar.seek(0)
        (loaded,) = own_engine.client().images.load(tar)
    return build_stand_in(own_engine.client(), loaded.id)


@pytest.fixture
def client(own_engine) -> Iterator[docker.DockerClient]:
    """Fails the test that leaves a container behind."""
    with contextlib.closing(own_engine.client()) as connected:
        yield connected
        left = connected.containers.list(all=True, ignore_removed=True)
        for container in left:
            container.remove(force=True)
        assert not left


@pytest.fixture
def make(own_engine, image, client, tmp_path) -> Callable[..., ContainerStep]:
    return lambda body="succeed()", **compute: ContainerStep(
        tmp_path, own_engine.address, image, body, **compute
    )
