"""A Prefect server for one run of the command line: `python -m flows.serve.temporary_server FD PARENT`.

It dies with the run, however that dies: the kernel sends it SIGTERM then. It is in a session of its own, so that Ctrl-C
reaches the run alone, which has yet to tell the server how it ended. It is started before Prefect is imported, so that both
import at once; who asks earlier than it answers waits in the queue of its socket.
"""

import atexit
import ctypes
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from dpo_core.contract.errors import PairlineError
from dpo_core.contract.importing import importing
from flows.serve.run_processes import SERVER_VARIABLE
from flows.serve.settings import HOST, PROJECT, SERVER_NEEDS, names_the_database

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LOG_FILE = "temporary-server.log"
START_SECONDS, STOP_SECONDS, POLL_SECONDS = 120.0, 10.0, 0.05
QUEUE = 128


@dataclass(frozen=True, slots=True)
class TemporaryServer:
    """The child process, its port on loopback, and its log."""

    child: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def api_url(self) -> str:
        return f"http://{HOST}:{self.port}/api"

    def wait(self) -> None:
        """Return once it answers. Raises ``PairlineError`` with the end of its log if it has died or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while self.child.poll() is None and time.monotonic() < deadline:
            if self._answers():
                return
            time.sleep(POLL_SECONDS)
        how = (
            "takes too long to start"
            if self.child.poll() is None
            else f"ended with exit code {self.child.returncode}"
        )
        lines = self.log.read_text(errors="replace").splitlines()[-15:]
        raise PairlineError(
            f"The run's own Prefect server {how}. Its log is {self.log}; its last lines:\n" + "\n".join(lines)
        )

    def _answers(self) -> bool:
        asking = http.client.HTTPConnection(HOST, self.port, timeout=START_SECONDS)
        try:
            asking.request("GET", "/api/health")
            return asking.getresponse().status in (200, 401)  # 401: it lives, and asks for its password
        except (OSError, http.client.HTTPException):
            return False
        finally:
            asking.close()

    def stop(self) -> None:
        """Send SIGTERM, and SIGKILL if that does not end it."""
        self.child.terminate()
        try:
            self.child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


def start_temporary_server(home: Path) -> TemporaryServer:
    """Start it on a free port, with Prefect's settings as they are in the environment, to be stopped at exit: after what
    Prefect, which is imported later, has to send then. ``home``: Prefect's folder, where its log goes."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if SERVER_NEEDS.fullmatch(name) or names_the_database(name)
    }
    paths = (str(PROJECT), os.environ.get("PYTHONPATH", ""))
    log = home / LOG_FILE
    with (
        socket.create_server((HOST, 0), backlog=QUEUE) as listener,
        open(log, "wb", opener=_private) as output,
    ):
        port = listener.getsockname()[1]
        child = subprocess.Popen(
            [sys.executable, "-m", "flows.serve.temporary_server", str(listener.fileno()), str(os.getpid())],
            env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            pass_fds=(listener.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = TemporaryServer(child, port, log)
    atexit.register(server.stop)
    return server


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def serve(descriptor: int, parent: int) -> None:
    """Serve on the socket of ``descriptor`` until SIGTERM or the end of process ``parent``."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the line above
        return
    with importing():
        import uvicorn
        from prefect.server.api.server import create_app

        from flows.serve.allowed_requests import AllowedRequests

    os.umask(0o077)  # its database above all
    with socket.socket(fileno=descriptor) as listener:
        url = f"http://{HOST}:{listener.getsockname()[1]}"
        app = AllowedRequests(
            create_app(ephemeral=True, final=True), url, frozenset(), frozenset(), os.environ[SERVER_VARIABLE]
        )
        uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on")).run(sockets=[listener])


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
