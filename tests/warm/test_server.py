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

from dpo_core.model.logprobs import CHUNK_LOGITS
from tests.programs.small_chunks import SMALL_CHUNKS_SITE, TOKENS, VOCABULARY
from tests.waiting import PATIENCE_SECONDS
from tests.warm.server import LAUNCHER, Forked
from tests.warm.started import ROOT, at_work, python_path, warm_server

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


def test_steps_fail_at_once_where_the_server_is_dead(server):
    assert run_step().returncode == 0
    server.kill()
    server.wait()
    assert run_step().returncode != 0
