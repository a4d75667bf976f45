"""Runs of the pool without a process, when a worker is started: who goes on, who ends, who is left to wait."""

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.events.actions import DoNothing
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.states import Cancelling, Crashed, Pending, Running, State

from flows.maintenance import resume_crashed
from flows.serve.crashed_runs import MAX_CRASHES, STOPPED
from flows.serve.server_objects import make_pool
from flows.serve.settings import POOL, ServeSettings
from flows.serve.stranded import RESUME_AUTOMATION, resume_overlooked_crashes, settle_stranded_runs
from tests.flows.serve.waiting_states import paused, suspended

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]


@flow(name="stranded")
def stranded() -> None:
    """Never run: its runs get their states from the tests."""


@pytest.fixture
def deployed(client: SyncPrefectClient) -> UUID:
    """The id of a deployment in the pool."""
    make_pool(client, ServeSettings())
    return client.create_deployment(client.create_flow(stranded), f"pooled-{uuid4()}", work_pool_name=POOL)


def made(state: State | Callable[[], State]) -> State:
    """A state that waits is made now."""
    return state() if callable(state) else state


@pytest.mark.parametrize(
    ("states", "settled"),
    [
        ((Pending(),), "Scheduled"),
        ((Pending(), Running()), "AwaitingRetry"),
        ((Pending(), Running(), paused), "AwaitingRetry"),
        ((Pending(), Running(), suspended), "Suspended"),
        ((Pending(), Running(), Cancelling()), "Cancelled"),
        ((Pending(), Running(), Crashed(message=f"a {STOPPED}")), "AwaitingRetry"),
        ((Pending(), Running(), Crashed(message="a defect")), "Crashed"),
    ],
    ids=lambda value: value if isinstance(value, str) else made(value[-1]).name,
)
def test_a_run_without_a_process_is_settled(
    client, deployed, states: tuple[State | Callable[[], State], ...], settled: str
):
    given = [made(state) for state in states]
    run = client.create_flow_run_from_deployment(deployed)
    for state in given:
        client.set_flow_run_state(run.id, state)
    assert client.read_flow_run(run.id).state.name == given[-1].name
    settle_stranded_runs("a-worker")
    assert client.read_flow_run(run.id).state.name == settled


@pytest.fixture
def resumer(client: SyncPrefectClient, deployed: UUID) -> Iterator[UUID]:
    """The id of the deployment resume-crashed; its automation is on, and does nothing here."""
    trigger = EventTrigger(expect={"nothing"}, posture=Posture.Reactive, threshold=1)
    automation = client.create_automation(
        AutomationCore(name=RESUME_AUTOMATION, trigger=trigger, actions=[DoNothing()])
    )
    yield client.create_deployment(client.create_flow(resume_crashed), "resume-crashed", work_pool_name=POOL)
    client.delete_automation(automation)


@pytest.mark.parametrize(
    ("num_crashes", "is_looked_at", "is_on", "left"),
    [
        (1, False, True, "AwaitingRetry"),
        (1, True, True, "Crashed"),
        (1, False, False, "Crashed"),
        (MAX_CRASHES + 1, False, True, "Crashed"),
    ],
    ids=["overlooked", "looked at", "automation off", "too often"],
)
def test_a_crash_that_nobody_saw_is_found(
    client, deployed, resumer, num_crashes: int, is_looked_at: bool, is_on: bool, left: str
):
    run = client.create_flow_run_from_deployment(deployed)
    for _ in range(num_crashes):
        for state in (Pending(), Running(), Crashed(message="a kill")):
            client.set_flow_run_state(run.id, state, force=True)
    if is_looked_at:
        client.create_flow_run_from_deployment(
            resumer, parameters={"flow_run_id": f"prefect.flow-run.{run.id}"}
        )
    if not is_on:
        client.request(
            "PATCH", f"/automations/{client.find_automation(RESUME_AUTOMATION).id}", json={"enabled": False}
        )
    resume_overlooked_crashes()
    assert client.read_flow_run(run.id).state.name == left


def test_prefect_yaml_names_the_automation_so():
    assert f"name: {RESUME_AUTOMATION}\n" in (Path(__file__).parents[3] / "prefect.yaml").read_text()
