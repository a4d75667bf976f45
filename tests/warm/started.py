"""Starts the servers of this session's steps, flows and Prefect servers."""

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

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def python_path() -> str:
    """PYTHONPATH of a process whose steps are forked while a server runs here."""
    return os.environ.get("PYTHONPATH", str(ROOT))


@contextlib.contextmanager
def warm_servers(*kinds: str) -> Iterator[list[subprocess.Popen]]:
    """Set PYTHONPATH so that programs are handed over. -> the servers, which end with the ``with`` block or this process

    ``kinds``: "steps", "prefect"
    """
    with tempfile.TemporaryDirectory(prefix="warm-") as folder, contextlib.ExitStack() as running:
        for file in (HERE / "site").glob("*.py"):
            shutil.copy(file, folder)
        Path(folder, "root").symlink_to(ROOT)
        servers = [running.enter_context(_server(kind, folder)) for kind in kinds]
        patched = running.enter_context(pytest.MonkeyPatch.context())
        patched.setenv("PYTHONPATH", os.pathsep.join((folder, str(ROOT))))
        yield servers


@contextlib.contextmanager
def _server(kind: str, folder: str) -> Iterator[subprocess.Popen]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:  # the server's alone: nobody waits for a dead one
        listener.bind(f"{folder}/{kind}")
        listener.listen(64)
        server = subprocess.Popen([sys.executable, "-m", "tests.warm.server", str(listener.fileno()), kind], cwd=ROOT,
                                  env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                                  stdin=subprocess.PIPE, pass_fds=[listener.fileno()])
    try:
        yield server
    finally:
        server.stdin.close()
        server.wait(timeout=60)
