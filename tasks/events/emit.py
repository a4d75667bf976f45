"""Sends an event to the Prefect server, once per checkpoint, and knows whether it arrived.

Prefect's own ``emit_event`` sends in the background and forgets what fails; a chain would then stop unseen. And the
server tells a repeated id only within five minutes of the first and only until it restarts, so the records are asked, too:
before, and until the event stands in them (the server writes them every five seconds). A server that dies before it wrote
the event has forgotten it, so it is sent until it is recorded; should two runs come of it, the second ends at once
(``chain.earlier_run``). An event that is in the records and started nothing, as the server died in between, is sent again as
the next attempt: by its old id the server would know it.
"""

import math
import time
from datetime import UTC, datetime
from typing import TypeVar
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.events.schemas.automations import EventTrigger
from prefect.events.schemas.events import Event, RelatedResource, Resource, ResourceSpecification

from dpo_core.contract.errors import RemoteError
from tasks.events.payloads import CheckpointReady

SECONDS_TO_BE_RECORDED, SECONDS_TO_BE_ACTED_ON, POLL_SECONDS = 180, 30, 0.5
SECONDS_UNTIL_SENT_AGAIN = 15
Payload = TypeVar("Payload", bound=CheckpointReady)


def event_of(payload: CheckpointReady) -> Event:
    """Return the event as the server keeps it; the run that made the checkpoint is related, so the UI links to it."""
    related = [
        RelatedResource(
            {"prefect.resource.id": f"prefect.tag.{payload.chain}", "prefect.resource.role": "tag"}
        )
    ]
    if payload.flow_run_id:
        related.append(
            RelatedResource(
                {
                    "prefect.resource.id": f"prefect.flow-run.{payload.flow_run_id}",
                    "prefect.resource.role": "flow-run",
                }
            )
        )
    return Event(
        id=payload.event_id,
        event=payload.EVENT,
        resource=payload.resource,
        related=related,
        payload=payload.model_dump(mode="json"),
    )


def emit(payload: Payload) -> tuple[Payload, bool]:
    """Send the event unless the server has it already. -> what was sent, or had been sent before; whether it was sent now

    Raises ``RemoteError`` if the server cannot be reached or refuses it.
    """
    try:
        with get_client(sync_client=True) as client:
            while sent := when_emitted(client, payload.event_id):
                if not is_awaited(client, payload) or was_acted_on(client, payload, sent):
                    return payload, False
                payload = payload.model_copy(update={"attempt": payload.attempt + 1})
            if is_acted_on(client, payload):
                return payload, False
            send(client, payload)
            return payload, True
    except Exception as error:
        raise RemoteError(
            f"The event {payload.EVENT} of {payload.name} did not reach the Prefect server: "
            f"{type(error).__name__}: {error}. The checkpoint is complete; start again to tell of "
            "it."
        ) from error


def send(client: SyncPrefectClient, payload: CheckpointReady) -> None:
    """Send the event until it stands in the records, or something came of it: a locked database may cost it its record.

    Raises ``TimeoutError`` if the server takes it and does not know it.
    """
    event = event_of(payload).model_dump(mode="json")
    started, sent = time.monotonic(), -math.inf
    while (now := time.monotonic()) < started + SECONDS_TO_BE_RECORDED:
        if now > sent + SECONDS_UNTIL_SENT_AGAIN:
            client.request("POST", "/events", json=[event]).raise_for_status()
            sent = now
        if when_emitted(client, payload.event_id) or is_acted_on(client, payload):
            return
        time.sleep(POLL_SECONDS)
    raise TimeoutError(f"it is not in the server's records after {SECONDS_TO_BE_RECORDED} s")


def when_emitted(client: SyncPrefectClient, event_id: UUID) -> datetime | None:
    """Return when the event occurred, if the records hold it (they go back as far as
    PREFECT_SERVER_EVENTS_RETENTION_PERIOD).
    """
    found = _events(client, {"id": {"id": [str(event_id)]}})
    return datetime.fromisoformat(found[0]["occurred"]) if found else None


def is_awaited(client: SyncPrefectClient, payload: CheckpointReady) -> bool:
    """Return whether an automation of the server waits for the event."""
    resource = Resource(payload.resource)
    return any(
        automation.enabled
        and isinstance(automation.trigger, EventTrigger)
        and payload.EVENT in automation.trigger.expect
        and ResourceSpecification.model_validate(automation.trigger.match).matches(resource)
        for automation in client.read_automations()
    )


def is_acted_on(client: SyncPrefectClient, payload: CheckpointReady) -> bool:
    """Return whether the event has a run, or an automation did its work upon it."""
    done = {
        "event": {"name": ["prefect.automation.action.executed"]},
        "related": {"resources_in_roles": [[f"prefect.event.{payload.event_id}", "triggering-event"]]},
    }
    runs = FlowRunFilter(tags=FlowRunFilterTags(all_=[payload.event_tag]))
    return bool(_events(client, done) or client.read_flow_runs(flow_run_filter=runs, limit=1))


def was_acted_on(client: SyncPrefectClient, payload: CheckpointReady, sent: datetime) -> bool:
    """Do the same, and wait while an automation may be about to."""
    while True:
        if is_acted_on(client, payload):
            return True
        if (datetime.now(UTC) - sent).total_seconds() > SECONDS_TO_BE_ACTED_ON:
            return False
        time.sleep(POLL_SECONDS)


def _events(client: SyncPrefectClient, wanted: dict) -> list[dict]:
    answer = client.request("POST", "/events/filter", json={"filter": wanted, "limit": 1})
    answer.raise_for_status()
    return answer.json()["events"]
