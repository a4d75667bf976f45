"""The worker outlives requests that fail: a real server behind a proxy that answers some of them with an error."""

import contextlib
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import get_current_settings

from tests.programs.quiet_flow import quiet
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]
ROOT = Path(__file__).parents[3]
POOL = "outlives"  # its own: in that of the installation are runs that other tests left


class Faults(ThreadingHTTPServer):
    """Passes requests on to ``upstream``, but for those that ``refused`` maps to a status, each as often as it says."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), PassedOn)
        self.upstream = upstream
        self.refused: dict[str, list[int]] = {}  # pattern of "METHOD path" -> statuses to come
        self.seen: list[str] = []
        self.lock = threading.Lock()

    def status_for(self, request: str) -> int | None:
        with self.lock:
            for pattern, statuses in self.refused.items():
                if statuses and re.search(pattern, request):
                    self.seen.append(pattern)
                    return statuses.pop(0)
        return None


class PassedOn(BaseHTTPRequestHandler):
    """One request."""

    server: Faults

    def answer(self) -> None:
        if self.headers.get("Upgrade"):
            self.tunnel()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status = self.server.status_for(f"{self.command} {self.path}")
        if status is not None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        headers = {
            key: value for key, value in self.headers.items() if key.lower() not in ("host", "connection")
        }
        got = httpx.request(
            self.command, self.server.upstream + self.path, content=body, headers=headers, timeout=120
        )
        self.send_response(got.status_code)
        self.send_header("Content-Type", got.headers.get("content-type", "application/json"))
        self.send_header("Content-Length", str(len(got.content)))
        self.end_headers()
        self.wfile.write(got.content)

    def tunnel(self) -> None:
        """A WebSocket's bytes, both ways, until one side ends."""
        upstream = httpx.URL(self.server.upstream)
        with socket.create_connection((upstream.host, upstream.port)) as other:
            other.sendall(f"{self.requestline}\r\n{self.headers}".encode())
            back = threading.Thread(target=pumped, args=(other, self.connection), daemon=True)
            back.start()
            pumped(self.connection, other)
            back.join()
        self.close_connection = True

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = answer

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


def pumped(source: socket.socket, sink: socket.socket) -> None:
    """What comes from one side goes to the other."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def faults() -> Iterator[Faults]:
    url = get_current_settings().api.url
    assert url
    with Faults(url.removesuffix("/api")) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


def a_run(client: SyncPrefectClient) -> UUID:
    """Of a deployment in the worker's pool."""
    flow_id = client.create_flow(quiet)
    deployment = client.create_deployment(
        flow_id, "quiet", work_pool_name=POOL, path=str(ROOT), entrypoint="tests/programs/quiet_flow.py:quiet"
    )
    return client.create_flow_run_from_deployment(deployment).id


@pytest.mark.parametrize(
    ("request_pattern", "statuses"),
    [
        (r"GET /api/deployments/", [500]),  # of a run that is about to start: ends Prefect's own worker
        (r"POST /api/work_pools/.*/get_scheduled_flow_runs", [403, 500, 500, 500, 500]),
        (r"POST /api/work_pools/.*/workers/heartbeat", [409]),
    ],
    ids=["start of a run", "polls", "heartbeat"],
)
def test_a_request_that_fails_costs_the_next_poll_and_no_run(
    client: SyncPrefectClient, faults: Faults, tmp_path: Path, monkeypatch, request_pattern, statuses
):
    if not any(pool.name == POOL for pool in client.read_work_pools()):
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{faults.server_port}/api")
    monkeypatch.setenv("PREFECT_WORKER_QUERY_SECONDS", "1")
    monkeypatch.setenv("PREFECT_WORKER_HEARTBEAT_SECONDS", "1")
    log = tmp_path / "worker.log"
    own = ["--pool", POOL, "--name", tmp_path.name, "--limit", "1"]
    argv = [sys.executable, "-m", "flows.serve.worker", *own]
    with log.open("wb") as out:
        worker = subprocess.Popen(argv, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: b" started!" in log.read_bytes(), of=worker, tell=lambda: log.read_text()[-3000:])
        faults.refused[request_pattern] = list(statuses)
        run = a_run(client)
        wait_until(lambda: len(faults.seen) == len(statuses), of=worker, tell=lambda: log.read_text()[-3000:])
        wait_until(
            lambda: client.read_flow_run(run).state.is_completed(),
            of=worker,
            tell=lambda: log.read_text()[-3000:],
        )
        assert "is asked again in a while" in log.read_text()
    finally:
        worker.terminate()
        assert worker.wait(60) == 0, log.read_text()[-3000:]
