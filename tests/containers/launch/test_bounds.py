"""What a step may use of the machine beside its own folder is bounded: the engine's copy of its output, networks."""

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import docker
import pytest

from dpo_core.contract.errors import ConfigError, DiskFull
from tasks.launch import folder_bound
from tasks.launch.context import Context
from tasks.launch.docker import engine as engine_module
from tasks.launch.docker.config import OWN_NETWORK
from tasks.launch.docker.container import NETWORK
from tasks.launch.docker.engine import ContainerEngine
from tests.containers.launch.private_engine import PrivateEngine
from tests.containers.launch.stand_in import ContainerStep, command_of
from tests.containers.launch.watching import container_of
from tests.waiting import wait_until

pytestmark = pytest.mark.integration
KEPT_BYTES, KEPT_FILES = 300_000, 4  # 3600 lines of those below
NUM_LINES, MAX_UNHEARD = 12_000, 1500
FLOOD = f"""
    heard = folder / "heard"
    for number in range({NUM_LINES}):
        print(number, "x" * 240, flush=number % 100 == 0)
        while number % 100 == 0 and number - int(heard.read_text() or 0) > {MAX_UNHEARD}:  # on a busy machine
            time.sleep(0.01)
    succeed()"""


def test_the_engines_copy_of_a_log_is_bounded_and_ours_lacks_no_line(
    make: Callable[..., ContainerStep], client: docker.DockerClient, own_engine: PrivateEngine, monkeypatch
):
    """What is followed goes on where the engine begins a new file, and what the engine then repeats is not doubled."""
    monkeypatch.setattr(engine_module, "LOG_FILE_BYTES", KEPT_BYTES)
    monkeypatch.setattr(engine_module, "LOG_FILES", KEPT_FILES)
    step, sizes = make(FLOOD), []
    (step.folder / "heard").write_text("0")
    with ThreadPoolExecutor() as pool:
        run = pool.submit(step.run)
        wait_until(lambda: step.log_lines or run.done())
        folder = own_engine.folder / "data/containers" / container_of(client, step).id
        while not run.done():
            (step.folder / "heard").write_text(str(len(step.log_lines)))
            with contextlib.suppress(FileNotFoundError):  # a file that is renamed meanwhile
                sizes.append(sum(path.stat().st_size for path in folder.glob("*-json.log*")))
        run.result()
    assert [line.partition(" ")[0] for line in step.log_lines] == [str(number) for number in range(NUM_LINES)]
    assert KEPT_BYTES < max(sizes) < (KEPT_FILES + 1) * KEPT_BYTES


def test_a_step_that_fills_its_folder_is_killed(make: Callable[..., ContainerStep], monkeypatch):
    """And not asked, as it could write on meanwhile. The container is gone, which the fixture checks."""
    monkeypatch.setattr(folder_bound, "SECONDS_BETWEEN_LISTINGS", 0.2)
    step = make(
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (folder / "large").write_bytes(bytes(20 << 20))
        time.sleep(2000)""",
        folder_gib=0.01,
        stop_grace_seconds=1000,
        step_timeout_seconds=1000,
    )
    started = time.monotonic()
    with pytest.raises(
        DiskFull, match=rf"{step.folder} holds .* expected at most 0\.01 GiB \(compute\.folder_gib\)"
    ):
        step.run()
    assert time.monotonic() - started < 900


def test_only_a_step_that_compiles_runs_what_it_made_in_its_scratch_folder(
    make: Callable[..., ContainerStep],
):
    """A compiler's output is loaded from there; any other step's scratch holds data alone."""
    step = make("""
        import shutil, subprocess
        shutil.copy("/bin/true", "/tmp/made")
        try:
            subprocess.run(["/tmp/made"], check=True)
            print("it ran")
        except PermissionError:
            print("refused")""")
    heard: list[str] = []
    for compiles in (False, True):
        command = replace(command_of(step), compiles=compiles)
        step.launcher.run((command,), Context(), heard.append, lambda: None)
    assert [line for line in heard if line in ("it ran", "refused")] == ["refused", "it ran"]


Network = Callable[..., str]


@pytest.fixture
def network(shared_engine: docker.DockerClient) -> Iterator[Network]:
    """Makes networks with labels, and removes them."""
    made = []

    def make(**labels: str) -> str:
        made.append(shared_engine.networks.create(f"test-{uuid.uuid4().hex[:8]}", labels=labels))
        return made[-1].name

    yield make
    for one in made:
        one.remove()


def test_a_network_of_somebody_else_is_refused_by_name(network: Network, base_image: str):
    engine = ContainerEngine()
    with pytest.raises(
        ConfigError, match=r"no network not-there .*docker network create --label pairline\.network NAME"
    ):
        engine.find_network("not-there")
    with pytest.raises(ConfigError, match=r"is compose project shop's, .* could reach what runs there"):
        engine.find_network(network(**{"com.docker.compose.project": "shop"}))
    with pytest.raises(ConfigError, match="is somebody else's"):
        engine.find_network(network())
    engine.find_network(network(**{NETWORK: ""}))


def test_no_step_is_started_in_a_network_of_somebody_else(make, client: docker.DockerClient):
    foreign = client.networks.create(f"test-{uuid.uuid4().hex[:8]}")
    try:
        step = make("succeed()", network=foreign.name)
        with pytest.raises(ConfigError, match="is somebody else's"):
            step.launcher.run(
                (replace(command_of(step), needs_network=True),), Context(), print, lambda: None
            )
        assert step.num_starts == 0
    finally:
        foreign.remove()


def test_steps_share_a_network_of_their_own_and_cannot_reach_each_other(
    shared_engine: docker.DockerClient, base_image: str
):
    ContainerEngine().find_network(OWN_NETWORK)
    ContainerEngine().find_network(OWN_NETWORK)
    (found,) = [one for one in shared_engine.networks.list() if one.name == OWN_NETWORK]
    assert NETWORK in found.attrs["Labels"]
    serve = ["python3", "-m", "http.server", "80"]
    server = shared_engine.containers.run(base_image, serve, detach=True, network=OWN_NETWORK, read_only=True)
    try:
        server.reload()
        address = server.attrs["NetworkSettings"]["Networks"][OWN_NETWORK]["IPAddress"]
        gateway = found.attrs["IPAM"]["Config"][0]["Gateway"]
        ask = f"""
import socket
def ask(address, port):
    try:
        socket.create_connection((address, port), timeout=2)
        return "reached"
    except OSError as error:
        return type(error).__name__
print(ask({address!r}, 80), ask({gateway!r}, 1))"""
        out = shared_engine.containers.run(
            base_image, ["python3", "-c", ask], network=OWN_NETWORK, remove=True
        )
        assert out.decode().split() == [
            "TimeoutError",
            "ConnectionRefusedError",
        ]  # the way out is there: it was answered
    finally:
        server.remove(force=True)
