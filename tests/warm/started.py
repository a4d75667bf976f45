"""Starts the server of this session's steps."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.warm.site.sitecustomize import SERVER

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHONPATH = os.pathsep.join((str(HERE / "site"), str(ROOT)))  # of every process whose steps may be forked


@contextlib.contextmanager
def warm_server() -> Iterator[None]:
    """Set the environment that has steps handed over. The server ends with the ``with`` block, or with this process."""
    with tempfile.TemporaryDirectory(prefix="pairline-warm-") as folder, socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address := f"{folder}/socket")
        listener.listen(64)
        room = {"ROOM_FOR_A_TITLE": "." * 4096}  # a child shows its arguments where this process has its own
        server = subprocess.Popen([sys.executable, "-m", "tests.warm.server", str(listener.fileno())], cwd=ROOT,
                                  env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | room,
                                  stdin=subprocess.PIPE, pass_fds=[listener.fileno()])
        before = {name: os.environ.get(name) for name in (SERVER, "PYTHONPATH")}
        os.environ |= {SERVER: address, "PYTHONPATH": PYTHONPATH}
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
            server.stdin.close()
            server.wait(timeout=60)
