"""Sends an event to the Prefect server, once per checkpoint, and knows whether it arrived.

Prefect's own ``emit_event`` sends in the background and forgets what fails; a chain would then stop unseen. And the
server tells a repeated id only within five minutes of the first and only until it restarts, so the records are asked, too:
before, and until the event stands in them (the server writes them every five seconds).
"""

import time
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.schemas.events import Event, RelatedResource

from dpo_core.errors import RemoteError
from tasks.events.payloads import CheckpointReady

SECONDS_TO_BE_RECORDED, POLL_SECONDS = 60, 0.5


def event_of(payload: CheckpointReady) -> Event:
    """The event as the server keeps it; the run that made the checkpoint is related, so the UI links to it."""
    related = [RelatedResource({"prefect.resource.id": f"prefect.tag.{payload.chain}", "prefect.resource.role": "tag"})]
    if payload.flow_run_id:
        related.append(RelatedResource({"prefect.resource.id": f"prefect.flow-run.{payload.flow_run_id}",
                                        "prefect.resource.role": "flow-run"}))
    return Event(id=payload.event_id, event=payload.EVENT, occurred=datetime.now(UTC), resource=payload.resource,
                 related=related, payload=payload.model_dump(mode="json"))


def emit(payload: CheckpointReady) -> bool:
    """Send the event unless the server has it already. -> whether it was sent

    Raises ``RemoteError`` if the server cannot be reached or refuses it.
    """
    try:
        with get_client(sync_client=True) as client:
            if was_emitted(client, payload.event_id):
                return False
            event = event_of(payload)
            client.request("POST", "/events", json=[event.model_dump(mode="json")]).raise_for_status()
            wait_until_recorded(client, payload.event_id)
            return True
    except Exception as error:
        raise RemoteError(f"The event {payload.EVENT} of {payload.name} did not reach the Prefect server: "
                          f"{type(error).__name__}: {error}. The checkpoint is complete; start again to tell of "
                          "it.") from error


def wait_until_recorded(client: SyncPrefectClient, event_id: UUID) -> None:
    """Raise ``TimeoutError`` if the server took the event and does not know it later."""
    deadline = time.monotonic() + SECONDS_TO_BE_RECORDED
    while not was_emitted(client, event_id):
        if time.monotonic() > deadline:
            raise TimeoutError(f"it is not in the server's records after {SECONDS_TO_BE_RECORDED} s")
        time.sleep(POLL_SECONDS)


def was_emitted(client: SyncPrefectClient, event_id: UUID) -> bool:
    """Whether the server's records hold the event (they go back as far as PREFECT_SERVER_EVENTS_RETENTION_PERIOD)."""
    answer = client.request("POST", "/events/filter", json={"filter": {"id": {"id": [str(event_id)]}}, "limit": 1})
    answer.raise_for_status()
    return bool(answer.json()["events"])
