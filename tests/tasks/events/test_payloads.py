"""The identity of an event: the same content is the same event, whoever tells of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.events.emit import event_of
from tasks.events.payloads import DpoCheckpointReady, SftCheckpointReady, chain_tag

hashes = st.text("0123456789abcdef", min_size=64, max_size=64)


def sft(weights: str = "a" * 64, tokenizer: str = "b" * 64, **fields: object) -> SftCheckpointReady:
    values = {
        "name": "sft",
        "source": "/models/sft",
        "weights_fingerprint": weights,
        "chain": chain_tag(weights),
        "tokenizer_fingerprint": tokenizer,
    }
    return SftCheckpointReady.model_validate(values | fields)


@given(weights=hashes, tokenizer=hashes, other=hashes)
def test_the_id_follows_from_content_alone(weights: str, tokenizer: str, other: str) -> None:
    told = sft(weights, tokenizer)
    elsewhere = sft(
        weights, tokenizer, name="again", source="/copy", flow_run_id="00000000-0000-4000-8000-000000000000"
    )
    assert told.event_id == elsewhere.event_id
    assert (sft(other, tokenizer).event_id == told.event_id) is (other == weights)
    assert (sft(weights, other).event_id == told.event_id) is (other == tokenizer)
    assert sft(weights, tokenizer, attempt=1).event_id != told.event_id


def test_the_same_fingerprint_at_another_stage_is_another_event() -> None:
    dpo = DpoCheckpointReady(
        name="dpo",
        weights_fingerprint="a" * 64,
        chain="chain:x",
        handoff="file:///handoff.json",
        handoff_fingerprint="a" * 64,
        uri="file:///dpo",
        revision="r",
    )
    assert dpo.event_id != sft().event_id
    assert dpo.resource["pairline.chain"] == "chain:x"


def test_a_payload_survives_the_event_and_refuses_another_version() -> None:
    payload = sft(flow_run_id="00000000-0000-4000-8000-000000000000", revision="c" * 40)
    event = event_of(payload)
    assert SftCheckpointReady.model_validate(event.payload) == payload
    assert event.id == payload.event_id
    assert {"prefect.flow-run.00000000-0000-4000-8000-000000000000", "prefect.tag." + payload.chain} == {
        related.id for related in event.related
    }
    with pytest.raises(ValidationError, match="schema_version"):
        SftCheckpointReady.model_validate(event.payload | {"schema_version": 2})
    with pytest.raises(ValidationError, match="weight_fingerprint"):
        SftCheckpointReady.model_validate(event.payload | {"weight_fingerprint": "a" * 64})
