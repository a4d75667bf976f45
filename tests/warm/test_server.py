"""The process that forks steps, where those who asked it die before it answers, or it dies itself."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.waiting import PATIENCE_SECONDS
from tests.warm.server import LAUNCHER, Forked
from tests.warm.started import warm_server

pytestmark = pytest.mark.integration
STEP = [sys.executable, "-m", "dpo_core", "--help"]


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen]:
    """One for this file; the last test kills it."""
    with warm_server() as process:
        yield process


@contextlib.contextmanager
def connected() -> Iterator[socket.socket]:
    """A stand-in that has asked for nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as standin:
        standin.connect(f"{os.environ['PYTHONPATH'].split(os.pathsep)[0]}/socket")
        yield standin


@contextlib.contextmanager
def asked() -> Iterator[socket.socket]:
    """A stand-in that has asked for a step which ends at once."""
    with connected() as standin, open(os.devnull, "r+b") as nothing:
        request = {"argv": ["dpo_core", "--help"], "env": dict(os.environ), "cwd": os.getcwd()}
        socket.send_fds(standin, [json.dumps(request).encode()], [nothing.fileno()] * 3)
        yield standin


def run_step() -> subprocess.CompletedProcess:
    return subprocess.run(STEP, capture_output=True, text=True, timeout=PATIENCE_SECONDS)


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


def test_steps_fail_at_once_where_the_server_is_dead(server):
    assert run_step().returncode == 0
    server.kill()
    server.wait()
    assert run_step().returncode != 0
