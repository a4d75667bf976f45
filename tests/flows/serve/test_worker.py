"""The worker outlives requests that fail: a real server behind a proxy that answers some of them with an error."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import get_current_settings

from tests.faulty_server import Faults
from tests.programs.quiet_flow import quiet
from tests.waiting import PATIENCE_SECONDS, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]
ROOT = Path(__file__).parents[3]
POOL = "outlives"  # its own: in that of the installation are runs that other tests left


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
        flow_id,
        "quiet",
        work_pool_name=POOL,
        entrypoint="tests/programs/quiet_flow.py:quiet",
        # as those of prefect.yaml; a ``path`` would be copied, a virtual environment and all
        pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
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
        assert worker.wait(PATIENCE_SECONDS) == 0, log.read_text()[-3000:]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_asked_whatever_it_is_at(client: SyncPrefectClient, tmp_path: Path, monkeypatch, number):
    """Also while something runs that catches everything: it worked on, and nothing but SIGKILL ended it."""
    if not any(pool.name == POOL for pool in client.read_work_pools()):
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    monkeypatch.setenv("PREFECT_API_URL", get_current_settings().api.url)
    log = tmp_path / "worker.log"
    own = ["--pool", POOL, "--name", tmp_path.name, "--limit", "1"]
    argv = [sys.executable, "-m", "tests.programs.catching_worker", *own]
    with log.open("wb") as out:
        worker = subprocess.Popen(argv, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
    wait_until(lambda: b"polls" in log.read_bytes(), of=worker, tell=log.read_text)
    worker.send_signal(number)
    try:
        assert worker.wait(60) == 0, log.read_text()[-3000:]
    finally:
        worker.kill()
    assert f"Received {number.name}" in log.read_text()
