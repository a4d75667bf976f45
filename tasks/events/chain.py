"""Runs of one chain find each other: by a common tag, and by a page that lists them with their links.

Prefect links a run to its parent only within one flow; runs that an event started have none. The tag is what the list of
runs can be filtered by, the page is an artifact of every run of the chain.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterId, FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from tasks.events.emit import emit
from tasks.events.payloads import CheckpointReady, DpoCheckpointReady, SftCheckpointReady
from tasks.handoff.schema import RLVRHandoff
from tasks.show.artifacts import markdown_artifact, never_fails
from tasks.text.escape import markdown_code, markdown_link, markdown_rows, markdown_text

log = logging.getLogger(__name__)
ENDED_WITHOUT_RESULT = {StateType.FAILED, StateType.CRASHED, StateType.CANCELLED}
ALREADY_STARTED = "Already started"  # name of the state that a second run of one event ends in


def announce_handoff(handoff: RLVRHandoff, path: Path) -> None:
    """Tell that the hand-off at ``path`` can be taken. Raises ``RemoteError`` if nobody hears it."""
    payload = DpoCheckpointReady.of(handoff, path, this_run())
    join_chain(payload.chain)
    _log_sent(*emit(payload))


def announce_sft(payload: SftCheckpointReady) -> tuple[SftCheckpointReady, bool]:
    """Tell of a verified SFT checkpoint. -> what was sent; whether it was news. Raises ``RemoteError``."""
    if payload.flow_run_id:
        join_chain(payload.chain)
    event, sent = emit(payload)
    _log_sent(event, sent)
    return event, sent


def _log_sent(payload: CheckpointReady, sent: bool) -> None:
    log.info(
        "%s %s (%s, event %s)",
        "Told of" if sent else "Already told of",
        payload.name,
        payload.EVENT,
        payload.event_id,
    )


def this_run() -> UUID | None:
    """Return the id of the flow run that this code is part of."""
    return UUID(flow_run.get_id()) if flow_run.get_id() else None


def join_chain(*tags: str) -> None:
    """Put ``tags`` on this run, beside those it has, and show the chain's page (the first tag is the chain's)."""
    run_id = this_run()
    if run_id is None:
        return
    with get_client(sync_client=True) as client:
        known = client.read_flow_run(run_id).tags
        if not set(tags) <= set(known):
            client.update_flow_run(run_id, tags=[*known, *(tag for tag in tags if tag not in known)])
        show_chain(client, tags[0])


def earlier_run(payload: CheckpointReady) -> FlowRun | None:
    """Return another run that the same event started before this one and that is at work or done."""
    run_id = this_run()
    if run_id is None:
        return None
    with get_client(sync_client=True) as client:
        mine = client.read_flow_run(run_id)
        runs = tagged_runs(client, payload.event_tag)
    earlier = [
        run
        for run in runs
        if run.id != run_id
        and (run.created, run.id) < (mine.created, mine.id)
        and run.state
        and run.state.type not in ENDED_WITHOUT_RESULT
        and run.state.name != ALREADY_STARTED
    ]
    return earlier[0] if earlier else None


def tagged_runs(client: SyncPrefectClient, tag: str) -> list[FlowRun]:
    """Return runs with a tag, oldest first."""
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[tag])),
        limit=200,
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
    )


@never_fails
def show_chain(client: SyncPrefectClient, tag: str) -> None:
    """Make the artifact ``chain-<digits>``: every run of the chain so far, with its link; the newest version knows the
    most.
    """
    runs = tagged_runs(client, tag)
    flows = {
        flow.id: flow.name
        for flow in client.read_flows(
            flow_filter=FlowFilter(id=FlowFilterId(any_=list({run.flow_id for run in runs})))
        )
    }
    page = chain_page(tag, [(flows.get(run.flow_id, ""), run, url_for(run) or "") for run in runs])
    markdown_artifact(page, tag.replace(":", "-"), "What this run follows and what follows it")


def chain_page(tag: str, runs: Sequence[tuple[str, FlowRun, str]]) -> str:
    """Return Markdown of (name of the flow, run, its address), oldest first."""
    rows = [
        [
            markdown_text(flow),
            markdown_link(run.name, address),
            markdown_text((run.state.name if run.state else "") or ""),
            f"{run.start_time:%Y-%m-%d %H:%M:%S}" if run.start_time else "",
            f"{run.total_run_time.total_seconds():.0f}",
        ]
        for flow, run, address in runs
    ]
    table = markdown_rows(("flow", "run", "state", "started", "seconds"), rows)
    return f"Runs with the tag {markdown_code(tag)}, oldest first.\n\n{table}\n"
