"""Runs of the pool without a process, when a worker is started: who goes on, who ends, who is left to wait."""

from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.states import Cancelling, Crashed, Paused, Pending, Running, State, Suspended

from flows.maintenance import STOPPED
from flows.serve.server_objects import make_pool
from flows.serve.settings import POOL, ServeSettings
from flows.serve.stranded import settle_stranded_runs

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]


@flow(name="stranded")
def stranded() -> None:
    """Never run: its runs get their states from the tests."""


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as made:
        yield made


@pytest.fixture
def deployed(client: SyncPrefectClient) -> UUID:
    """The id of a deployment in the pool."""
    make_pool(client, ServeSettings())
    return client.create_deployment(client.create_flow(stranded), f"pooled-{uuid4()}", work_pool_name=POOL)


@pytest.mark.parametrize(("states", "settled"), [
    ((Pending(),), "Scheduled"), ((Pending(), Running()), "AwaitingRetry"),
    ((Pending(), Running(), Paused(timeout_seconds=3600, pause_key="approval-1")), "AwaitingRetry"),
    ((Pending(), Running(), Suspended(timeout_seconds=3600, pause_key="approval-1")), "Suspended"),
    ((Pending(), Running(), Cancelling()), "Cancelled"),
    ((Pending(), Running(), Crashed(message=f"a {STOPPED}")), "AwaitingRetry"),
    ((Pending(), Running(), Crashed(message="a defect")), "Crashed")],
    ids=lambda value: value if isinstance(value, str) else value[-1].name)
def test_a_run_without_a_process_is_settled(client, deployed, states: tuple[State, ...], settled: str):
    run = client.create_flow_run_from_deployment(deployed)
    for state in states:
        client.set_flow_run_state(run.id, state)
    assert client.read_flow_run(run.id).state.name == states[-1].name
    settle_stranded_runs("a-worker")
    assert client.read_flow_run(run.id).state.name == settled
