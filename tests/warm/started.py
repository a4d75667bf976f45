"""Starts the servers that fork what this session's tests start."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.warm.kinds import KINDS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SERVER = "tests.warm.server"


def python_path() -> str:
    """PYTHONPATH of a process whose steps are forked while a server runs here."""
    return os.environ.get("PYTHONPATH", str(ROOT))


def at_work(process: int) -> int:
    """The process that works for a stand-in whose output is its own: it has the same. What is no stand-in works itself."""
    output = os.readlink(f"/proc/{process}/fd/1")
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_forked = SERVER.encode() in (place / "cmdline").read_bytes().split(b"\0")
            if is_forked and os.readlink(place / "fd/1") == output:
                return int(place.name)
    return process


@contextlib.contextmanager
def warm_servers() -> Iterator[dict[str, subprocess.Popen]]:
    """Set PYTHONPATH so that programs are handed over. -> the server of each kind; they end with the ``with`` block, or with
    this process."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="warm-"))
        for file in (HERE / "site").glob("*.py"):
            shutil.copy(file, folder)
        Path(folder, "root").symlink_to(ROOT)
        servers = {kind: stack.enter_context(_server(kind, f"{folder}/{kind}")) for kind in KINDS}
        patched = stack.enter_context(pytest.MonkeyPatch.context())
        patched.setenv("PYTHONPATH", os.pathsep.join((folder, str(ROOT))))
        yield servers


@contextlib.contextmanager
def _server(kind: str, address: str) -> Iterator[subprocess.Popen]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen(64)
        server = subprocess.Popen(
            [sys.executable, "-m", SERVER, str(listener.fileno()), kind],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
        )  # the listener is the server's alone from here: once it is dead, nobody waits for it
    try:
        yield server
    finally:
        server.stdin.close()
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:  # it imports still, has started nothing, and hears of nothing
            server.kill()
            server.wait()
