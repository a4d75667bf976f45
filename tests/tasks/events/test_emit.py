"""When an event counts as told: it started something, or nobody waits for it. Else it is told again."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.actions import DoNothing
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from tasks.events.emit import emit, event_of, when_emitted
from tasks.events.payloads import SftCheckpointReady, chain_tag

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]
AN_HOUR_AGO = datetime.now(UTC) - timedelta(hours=1)


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as made:
        yield made


def payload() -> SftCheckpointReady:
    """Of a checkpoint of its own."""
    weights = uuid4().hex
    return SftCheckpointReady(
        name="sft",
        source="/models/sft",
        weights_fingerprint=weights,
        chain=chain_tag(weights),
        tokenizer_fingerprint="b" * 64,
    )


@contextmanager
def awaiting(client: SyncPrefectClient, *payloads: SftCheckpointReady) -> Iterator[None]:
    """An automation waits for the events of these checkpoints."""
    resources = [payload.resource["prefect.resource.id"] for payload in payloads]
    trigger = EventTrigger(
        expect={SftCheckpointReady.EVENT},
        match={"prefect.resource.id": resources},
        posture=Posture.Reactive,
        threshold=1,
    )
    made = client.create_automation(
        AutomationCore(name=f"awaits {uuid4()}", trigger=trigger, actions=[DoNothing()])
    )
    try:
        yield
    finally:
        client.delete_automation(made)


def lost(payload: SftCheckpointReady) -> dict:
    """The event as it stands in the records when nothing came of it."""
    return event_of(payload).model_copy(update={"occurred": AN_HOUR_AGO}).model_dump(mode="json")


def record(client: SyncPrefectClient, *events: dict) -> None:
    client.request("POST", "/events", json=list(events)).raise_for_status()
    for event in events:
        while not when_emitted(client, UUID(event["id"])):  # the server writes them every five seconds
            time.sleep(0.5)


def test_where_nobody_waits_for_it_a_recorded_event_is_told(client):
    told = payload()
    assert emit(told) == (told, True)
    assert emit(told) == (told, False)


def test_an_event_that_the_server_took_and_forgot_is_sent_again(client, monkeypatch):
    """As by a server that is killed before it has written what it took."""
    monkeypatch.setattr("tasks.events.emit.SECONDS_UNTIL_SENT_AGAIN", 1)
    sent, request = [], SyncPrefectClient.request

    def forgetful(self, method, path, **arguments):
        if (method, path) == ("POST", "/events"):
            sent.extend(arguments["json"])
            if len(sent) == 1:
                arguments["json"] = []
        return request(self, method, path, **arguments)

    monkeypatch.setattr(SyncPrefectClient, "request", forgetful)
    told = payload()
    assert emit(told) == (told, True)
    assert len(sent) > 1
    assert {event["id"] for event in sent} == {str(told.event_id)}


def test_an_event_that_came_to_nothing_is_told_again_as_the_next_attempt_and_one_that_did_is_not(client):
    nothing, another, has_a_run, acted_on = (payload() for _ in range(4))
    # What the server itself writes after an action; tests/server sees a real one.
    acted = {
        "id": str(uuid4()),
        "event": "prefect.automation.action.executed",
        "occurred": AN_HOUR_AGO.isoformat(),
        "resource": {"prefect.resource.id": f"prefect.automation.{uuid4()}"},
        "payload": {},
        "related": [
            {
                "prefect.resource.id": f"prefect.event.{acted_on.event_id}",
                "prefect.resource.role": "triggering-event",
            }
        ],
    }
    record(client, acted, *(lost(each) for each in (nothing, another, has_a_run, acted_on)))
    client.create_flow_run(flow(lambda: None, name="has-a-run"), tags=[has_a_run.event_tag])
    with awaiting(client, nothing, has_a_run, acted_on):  # from now on, as the server does act on events
        for known in (another, has_a_run, acted_on):  # for the first of them nobody waits
            assert emit(known) == (known, False)
        again = nothing.model_copy(update={"attempt": 1})
        assert emit(nothing) == (again, True)
    assert again.event_id != nothing.event_id
