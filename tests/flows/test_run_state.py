"""What the deployment `reap` is told of a run by a real server."""

from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.states import AwaitingRetry, Completed, Running

from flows.maintenance import state_of, store_gc

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]


def test_a_run_is_live_until_its_state_is_final_and_others_are_unknown():
    with get_client(sync_client=True) as client:
        for state, expected in ((Running(), "live"), (AwaitingRetry(), "live"), (Completed(), "over")):
            run = client.create_flow_run(store_gc, state=state)
            assert state_of(str(run.id)) == expected
    assert (state_of(str(uuid4())), state_of("")) == ("unknown", "unknown")
