"""What a cancelled run leaves running: a step in a container or a job of a cluster that its process had no time to end.

Prefect gives the process of a cancelled run 30 s from SIGTERM to SIGKILL. A step may take longer to write its checkpoint:
that of a large model, and any on a machine that is busy. A process of this machine dies with the run; what is in a container
or on a cluster is ended by the worker.
"""

from collections.abc import Collection
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun

from dpo_core.contract.errors import PairlineError
from tasks.launch.reaped import Reaped, reap_all


def end_what_is_left(run_id: UUID) -> list[Reaped]:
    """End what a run without a process has left, if it was cancelled: one that crashed goes on, and attaches to its steps.

    Takes as long as a step that writes its checkpoint. -> what was ended
    """
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run_id).state
        if state is None or not state.is_cancelled():
            return []
        runs = {str(run_id), *(str(run.id) for run in parts_of(client, [run_id]))}
    try:
        found = reap_all(state_of=lambda flow_run_id: "over", only_of=runs)
    except PairlineError:  # there is nothing but this machine's processes
        return []
    return [one for one in found if one.reason]


def parts_of(client: SyncPrefectClient, run_ids: Collection[UUID]) -> list[FlowRun]:
    """Return the flow runs that were started in these, and in those."""
    parents = FlowRunFilterParentFlowRunId(any_=list(run_ids))
    parts = client.read_flow_runs(flow_run_filter=FlowRunFilter(parent_flow_run_id=parents))
    return parts + (parts_of(client, [part.id for part in parts]) if parts else [])
