"""The processes that fork steps and runs, where those who asked die before they are answered, or they do so themselves."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from uuid import uuid4

import pytest

from dpo_core.model.logprobs import CHUNK_LOGITS
from tests.programs.small_chunks import SMALL_CHUNKS_SITE, TOKENS, VOCABULARY
from tests.waiting import PATIENCE_SECONDS
from tests.warm.server import LAUNCHER, Forked
from tests.warm.started import ROOT, at_work, python_path, warm_servers

pytestmark = pytest.mark.integration
STEP = [sys.executable, "-m", "dpo_core", "--help"]
DISCARD = 9  # a port where nobody listens
ENGINE = [sys.executable, "-m", "prefect.engine"]


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, subprocess.Popen]]:
    """Those of this file; the last test kills them."""
    with warm_servers() as processes:
        yield processes


@pytest.fixture(scope="module")
def server(servers: dict[str, subprocess.Popen]) -> subprocess.Popen:
    return servers["steps"]


@contextlib.contextmanager
def connected() -> Iterator[socket.socket]:
    """A stand-in that has asked for nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as standin:
        standin.connect(f"{os.environ['PYTHONPATH'].split(os.pathsep)[0]}/steps")
        yield standin


@contextlib.contextmanager
def asked() -> Iterator[socket.socket]:
    """A stand-in that has asked for a step which ends at once."""
    with connected() as standin, open(os.devnull, "r+b") as nothing:
        request = {"argv": ["dpo_core", "--help"], "env": dict(os.environ), "cwd": os.getcwd()}
        socket.send_fds(standin, [json.dumps(request).encode()], [nothing.fileno()] * 3)
        yield standin


def run_step() -> subprocess.CompletedProcess:
    return ended(STEP)


def ended(argv: list[str], **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=PATIENCE_SECONDS, env=os.environ | variables
    )


def test_a_stand_in_that_dies_with_its_answer_unread_costs_no_other_one(server):
    with asked() as standin:
        assert select.select([standin], [], [], PATIENCE_SECONDS)[0]
    assert run_step().returncode == 0


def test_a_stand_in_that_passes_a_signal_on_too_late_costs_no_other_one(server):
    with asked() as standin:
        assert select.select([standin], [], [], PATIENCE_SECONDS)[
            0
        ]  # the step has ended, and nobody has read so
        standin.send(json.dumps(signal.SIGTERM).encode())
        with pytest.raises(subprocess.TimeoutExpired):
            server.wait(timeout=3)
    assert run_step().returncode == 0


def test_a_stand_in_that_dies_at_once_costs_no_other_one(server):
    with asked():
        pass
    with connected():
        pass
    assert run_step().returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("program", [LAUNCHER, "dpo_core"])
def test_a_signal_reaches_a_child_that_has_just_been_forked(number: int, program: str):
    """Before it leads a group of its own, on a busy machine: it would run on without its stand-in."""
    with subprocess.Popen(["sleep", "600"]) as child, connected_pair() as standin:
        try:
            Forked(child.pid, program == LAUNCHER, standin).signal(number)
            assert child.wait(PATIENCE_SECONDS) == -number
        finally:
            child.kill()


@contextlib.contextmanager
def connected_pair() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours


@contextlib.contextmanager
def told(*path: str) -> Iterator[tuple[subprocess.Popen, int, int]]:
    """-> a process or stand-in, the pid of what works for it, and how many logits that would hold at once."""
    argv = [sys.executable, "-m", "tests.programs.chunk_told"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    ends = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(argv, env=environment, text=True, **ends) as process:
        pid, chunk = process.stdout.readline().split()
        yield process, int(pid), int(chunk)


def test_a_step_has_small_chunks_where_its_python_path_says_so_and_nowhere_else(server):
    small = TOKENS * VOCABULARY
    for path, expected in (
        ((python_path(), str(SMALL_CHUNKS_SITE)), small),
        ((str(ROOT), str(SMALL_CHUNKS_SITE)), small),  # cold
        ((python_path(),), CHUNK_LOGITS),
    ):
        with told(*path) as (process, pid, chunk):
            assert (chunk, pid == process.pid) == (expected, path[0] == str(ROOT))


def test_what_works_for_a_stand_in_is_found(server):
    """To stop the stand-in alone would leave its step at work."""
    with told(python_path()) as (process, pid, _):
        assert at_work(process.pid) == pid != process.pid
    with told(str(ROOT)) as (process, pid, _):
        assert at_work(process.pid) == pid == process.pid


@pytest.mark.parametrize("path", [None, str(ROOT)], ids=["forked", "cold"])
@pytest.mark.parametrize(
    ("url", "refusal"),
    [("ftp://127.0.0.1", "UnsupportedProtocol"), (f"http://127.0.0.1:{DISCARD}/api", "ConnectError")],
)
def test_a_run_asks_the_server_of_its_own_environment(servers, path: str | None, url: str, refusal: str):
    own = {"PREFECT_API_URL": url, "PREFECT_CLIENT_MAX_RETRIES": "0"} | ({"PYTHONPATH": path} if path else {})
    asked = ended([*ENGINE, str(uuid4())], **own)
    assert asked.returncode == 1
    assert f"httpx.{refusal}" in asked.stderr


def test_steps_and_runs_fail_at_once_where_their_servers_are_dead(servers):
    assert run_step().returncode == 0
    for process in servers.values():
        process.kill()
        process.wait()
    for argv in (STEP, ENGINE):
        refused = ended(argv)
        assert refused.returncode != 0
        assert "is dead" in refused.stderr
    settings_of_the_hub = ended(ENGINE, HF_HUB_DISABLE_XET="1")  # which are read at an import: it starts cold
    assert "Invalid flow run id" in settings_of_the_hub.stderr
