"""An event whose predecessor the server does not know is kept back for moments, not for minutes."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect.server.events.ordering import EventArrivedEarly, get_triggers_causal_ordering
from prefect.server.events.schemas.events import ReceivedEvent, Resource
from prefect.settings import PREFECT_SERVER_EVENTS_CAUSAL_ORDERING, temporary_settings

from flows.serve.event_order import PATIENCE
from flows.serve.settings import ServeSettings


@pytest.fixture(autouse=True)
def servers_order(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """What the server is told."""
    monkeypatch.setattr("os.environ", {})
    named = ServeSettings(home=tmp_path).server_environment()["PREFECT_SERVER_EVENTS_CAUSAL_ORDERING"]
    with temporary_settings({PREFECT_SERVER_EVENTS_CAUSAL_ORDERING: named}):
        yield
        get_triggers_causal_ordering().clear()


def crash(seconds_ago: float) -> ReceivedEvent:
    """A crash that follows a state from before the server's start."""
    moment = datetime.now(UTC) - timedelta(seconds=seconds_ago)
    return ReceivedEvent(
        occurred=moment,
        received=moment,
        event="prefect.flow-run.Crashed",
        id=uuid4(),
        follows=uuid4(),
        resource=Resource({"prefect.resource.id": "prefect.flow-run.1"}),
    )


async def acted_on(event: ReceivedEvent) -> bool:
    """Whether automations get to see the event now."""
    try:
        async with get_triggers_causal_ordering().preceding_event_confirmed(acted_on, event):
            return True
    except EventArrivedEarly:
        return False


def test_an_event_waits_for_the_one_before_it():
    early = crash(seconds_ago=0)
    assert not asyncio.run(acted_on(early))
    assert asyncio.run(get_triggers_causal_ordering().get_lost_followers()) == []


def test_an_event_whose_predecessor_does_not_come_is_acted_on_after_the_patience():
    async def kept_back_and_handed_out() -> list[ReceivedEvent]:
        order = get_triggers_causal_ordering()
        await order.record_follower(late)
        return await order.get_lost_followers()

    late = crash(seconds_ago=PATIENCE.total_seconds() + 1)
    assert asyncio.run(kept_back_and_handed_out()) == [late]
    assert asyncio.run(acted_on(late))
