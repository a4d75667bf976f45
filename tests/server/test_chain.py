"""The chain by events: one checkpoint told of, one run started, whatever is repeated; and a trigger that fails is seen."""

import uuid

import pytest

from tasks.events.chain import ALREADY_STARTED, tagged_runs
from tasks.handoff.schema import read_handoff
from tests.server.conftest import Installation, run_of_chain, wait_until

pytestmark = pytest.mark.integration


def test_an_sft_checkpoint_becomes_a_verified_start_of_rlvr(installation: Installation, chain):
    store, event_id = chain
    dpo = installation.wait_for_end(run_of_chain(installation, store).id)
    assert dpo.state.is_completed(), dpo.state.message
    (rlvr,) = wait_until(
        lambda: [
            run
            for run in installation.runs_of("rlvr-intake/after-dpo")
            if run.parameters["checkpoint"]["flow_run_id"] == str(dpo.id)
        ],
        "its run of rlvr-intake",
    )
    rlvr = installation.wait_for_end(rlvr.id)
    assert rlvr.state.is_completed(), rlvr.state.message
    handoff = read_handoff(next(store.glob("handoff/*/handoff.json")))
    assert rlvr.parameters["checkpoint"]["handoff_fingerprint"] == handoff.fingerprint
    (tag,) = (tag for tag in dpo.tags if tag.startswith("chain:"))
    assert tag in rlvr.tags
    assert f"event:{event_id}" in dpo.tags
    with installation.client() as client:
        assert [run.id for run in tagged_runs(client, tag)] == [dpo.id, rlvr.id]
        pages = client.request(
            "POST", "/artifacts/filter", json={"artifacts": {"key": {"any_": [tag.replace(":", "-")]}}}
        )
    assert any(str(dpo.id) in page["data"] and str(rlvr.id) in page["data"] for page in pages.json())
    # Should the server forget that it acted on the event, a second run of it finds the first and does nothing.
    again = installation.wait_for_end(installation.start("rlvr-intake/after-dpo", rlvr.parameters))
    assert (again.state.is_completed(), again.state.name) == (True, ALREADY_STARTED)
    assert str(rlvr.id) in again.state.message


def test_a_payload_that_does_not_fit_ends_as_a_red_run(installation: Installation):
    event = {
        "id": str(uuid.uuid4()),
        "event": "sft.checkpoint.ready",
        "occurred": "2026-01-01T00:00:00Z",
        "resource": {"prefect.resource.id": "pairline.checkpoint.broken"},
        "payload": {"name": "no fingerprints"},
    }
    with installation.client() as client:
        client.request("POST", "/events", json=[event])
    (red,) = wait_until(
        lambda: [
            run
            for run in installation.runs_of("failed-trigger/failed-trigger")
            if run.state and run.state.is_failed()
        ],
        "a failed run that tells of it",
    )
    assert "dpo-stage after an SFT checkpoint" in red.state.message
    assert "weights_fingerprint" in red.state.message
