"""The real engine, the real trainer image and a real registry, made once and shared by all tests with containers.

Without an engine these tests are skipped with the reason; under ``CI=true`` that is a failure (tests/conftest.py).
"""

import shutil
import subprocess
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest
from docker.models.images import Image

from dpo_core.contract.errors import ConfigError, RemoteError
from examples.slurm.private_cluster import free_ports
from tasks.image.config import ImageConfig
from tasks.image.context import tar_bytes
from tasks.image.engine import connected
from tasks.image.image_ref import ImageRef
from tasks.image.push import Login
from tasks.image.trainer_image import CHECKOUT, trainer_image
from tests.conftest import KEPT
from tests.containers.small_checkout import REPOSITORY, make_small_checkout, make_small_wheelhouse
from tests.prefect_harness import prefect_server
from tests.programs import small_chunks
from tests.programs.small_chunks import SMALL_CHUNKS_SITE
from tests.waiting import wait_until

__all__ = ["prefect_server"]  # a fixture of several folders
HERE = Path(__file__).parent
BASE = ImageConfig().base
MINUTES_FOR_THE_FIRST_BUILD = 40  # base, wheels, DeepSpeed, image: six minutes on two free cores
USERNAME, PASSWORD = "ada", "not-a-secret"
HTPASSWD = f"{USERNAME}:$2y$05$abcdefghijklmnopqrstuuVPNOToLP9MHdthRCXkVoiIF0qNKnk2G\n"  # bcrypt of PASSWORD


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test of a session waits for the image."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(MINUTES_FOR_THE_FIRST_BUILD * 60))


@pytest.fixture(scope="session")
def shared_engine() -> Iterator[docker.DockerClient]:
    """The engine of this machine."""
    try:
        with connected() as client:
            yield client
    except (ConfigError, RemoteError) as error:
        pytest.skip(f"No container engine on this machine: {error}")


@pytest.fixture(scope="session")
def base_image(shared_engine: docker.DockerClient) -> str:
    """The id of the default base, made from Debian packages if it is not there."""
    if not shared_engine.images.list(BASE):
        if shutil.which("mmdebstrap") is None:
            pytest.skip(f"{BASE} is not there, and mmdebstrap, which makes it, is not installed")
        subprocess.run([CHECKOUT / "images/base/build.sh"], check=True)
    return shared_engine.images.get(BASE).id


@pytest.fixture(scope="session")
def image_store() -> Path:
    """A store that outlives the session: wheels are gathered and DeepSpeed is built once a machine."""
    return KEPT


@pytest.fixture(scope="session")
def trainer(base_image: str, image_store: Path) -> ImageRef:
    """The trainer image of this checkout, as its files are now."""
    return trainer_image(ImageConfig(dirty_tree="tag"), image_store, None, print)[0]


def image_made_of(
    engine: docker.DockerClient, parent: str, files: Mapping[str, bytes], changes: str
) -> Image:
    """A child of an image with more files, as ``docker commit --change`` makes it."""
    container = engine.containers.create(parent, ["true"])
    try:
        assert container.put_archive("/", tar_bytes(files))
        return container.commit(changes=changes)
    finally:
        container.remove()


@pytest.fixture(scope="session")
def trainer_of_small_chunks(trainer: ImageRef, shared_engine: docker.DockerClient) -> Iterator[str]:
    """The id of a trainer image whose steps compute logits of a few tokens at a time, as those of several ranks do that
    other tests start (tests/programs/small_chunks.py)."""
    files = {
        "small/sitecustomize.py": (SMALL_CHUNKS_SITE / "sitecustomize.py").read_bytes(),
        "small/tests/programs/small_chunks.py": Path(small_chunks.__file__).read_bytes(),
    }
    changes = "ENV PYTHONPATH=/small"  # before Debian's own sitecustomize
    image = image_made_of(shared_engine, trainer.reference, files, changes)
    told = "from dpo_core.model import logprobs; print(logprobs.CHUNK_LOGITS)"
    said = shared_engine.containers.run(image.id, ["python", "-c", told], remove=True)
    assert int(said) == small_chunks.TOKENS * small_chunks.VOCABULARY
    yield image.id
    shared_engine.images.remove(image.id, force=True)


Build = Callable[..., tuple[ImageRef, list[str]]]


@pytest.fixture
def build(tmp_path: Path, base_image: str, shared_engine: docker.DockerClient) -> Iterator[Build]:
    """Build the small checkout in ``tmp_path``: settings in, the image and the lines of its build out.

    What it leaves on the engine is removed afterwards.
    """
    label = f"io.pairline.test={uuid.uuid4().hex}"
    make_small_checkout(tmp_path / "checkout", label)
    wheels = make_small_wheelhouse(tmp_path / "wheels")

    def run(login: Login | None = None, **settings: object) -> tuple[ImageRef, list[str]]:
        said: list[str] = []
        config = ImageConfig(**({"repository": REPOSITORY, "wheelhouse": wheels} | settings))
        return trainer_image(config, tmp_path / "store", login, said.append, tmp_path / "checkout")[0], said

    yield run
    shared_engine.images.prune(filters={"dangling": True, "label": label})  # what failed builds left hanging
    for image in shared_engine.images.list(filters={"label": label}):
        shared_engine.images.remove(image.id, force=True)


@dataclass(frozen=True)
class Registry:
    """A registry on loopback that wants to know who asks."""

    address: str
    login: Login


@pytest.fixture(scope="package")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Debian's docker-registry on a free port."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed")
    folder = tmp_path_factory.mktemp("registry")
    address = f"127.0.0.1:{free_ports(1)[0]}"
    (folder / "htpasswd").write_text(HTPASSWD)
    (folder / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder / 'data'}}}}}\n"
        f"http: {{addr: '{address}'}}\nauth: {{htpasswd: {{realm: test, path: {folder / 'htpasswd'}}}}}\n"
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, "serve", folder / "config.yml"], stdout=log, stderr=log)
    try:
        wait_for(f"http://{address}/v2/", process)
        yield Registry(address, Login(USERNAME, PASSWORD))
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_for(address: str, process: subprocess.Popen) -> None:
    """Until the server answers (with 401: it wants to know who asks)."""

    def answers() -> bool:
        try:
            urllib.request.urlopen(address, timeout=60)
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return False

    wait_until(answers, f"an answer of {address}", of=process)
