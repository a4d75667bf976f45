"""Flows that keep a team's server and store in order. Their deployments stand in prefect.yaml."""

from pathlib import Path
from typing import Annotated
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.states import Failed, State
from pydantic import Field

from dpo_core.contract.visible import visible
from flows.serve.crashed_runs import MAX_CRASHES, go_on
from tasks.launch.reaped import RunState, reap_all
from tasks.run.garbage import collect, in_words
from tasks.show.artifacts import table_artifact
from tasks.show.run_log import make_logs_visible

Days = Annotated[float, Field(ge=0, le=100_000)]  # a form's descriptions come from docstrings
Count = Annotated[int, Field(ge=0, le=1_000_000)]


@flow(name="store-gc", persist_result=False)
def store_gc(
    store_root: Path = Path(".pairline"),
    older_than_days: Days = 30.0,
    keep_per_name: Count = 1,
    dry_run: bool = True,
) -> str:
    """Remove step results and snapshots that no kept run leads to (see ``tasks/run/garbage.py``).

    Args:
        store_root: Folder of the store (a recipe's store.root).
        older_than_days: Runs and results younger than this stay.
        keep_per_name: Newest completed runs of each name that stay whatever their age.
        dry_run: Only say what would go.
    """
    make_logs_visible()
    if not store_root.expanduser().exists():  # a fresh installation's first Sunday
        return f"There is no {store_root.expanduser().resolve()} yet, so nothing is to be removed."
    found = collect(store_root, older_than_days, keep_per_name, dry_run)
    rows = [
        {
            "entry": str(entry.path),
            "MB": round(entry.num_bytes / 1e6, 1),
            "days unused": round(entry.age_days, 1),
            "removed": entry.path in found.removed,
        }
        for entry in found.garbage
    ]
    table_artifact(rows, "store-gc", in_words(found, dry_run))
    get_run_logger().info(in_words(found, dry_run))
    return in_words(found, dry_run)


@flow(name="reap", persist_result=False)
def reap(dry_run: bool = False) -> str:
    """End the containers of this machine and the Slurm jobs of this user that no live run owns (see ``reap_all``).

    Args:
        dry_run: Only say which would go.
    """
    make_logs_visible()
    found = reap_all(dry_run, state_of)
    rows = [
        {"name": one.name, "step": one.step, "run": one.run, "why": one.reason, "done": one.done}
        for one in found
    ]
    table_artifact(rows, "reap", "Containers and jobs of Pairline's")
    return f"{len(found)} containers and jobs, {sum(bool(one.reason) for one in found)} of them orphaned"


def state_of(flow_run_id: str) -> RunState:
    """Return what the server says of the run."""
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(UUID(flow_run_id)).state
        except (ObjectNotFound, ValueError):
            return "unknown"
    return "over" if state is not None and state.is_final() else "live"


@flow(name="failed-trigger", persist_result=False)
def failed_trigger(automation: str, reason: str, event: str = "") -> State:
    """Leave a red run for an automation whose action failed: without it nobody sees that an event started nothing.

    Args:
        automation: Name of the automation.
        reason: Why its action failed.
        event: What the server tells of it, as JSON text: it may hold what a run's parameters may not.
    """
    make_logs_visible()
    get_run_logger().error(
        "The automation %s did not do its work: %s. What it was told: %s", automation, reason, event
    )
    return Failed(message=visible(f"The automation {automation} did not do its work: {reason}"))


@flow(name="resume-crashed", persist_result=False)
def resume_crashed(flow_run_id: str, max_crashes: Count = MAX_CRASHES) -> State:
    """Have a crashed run go on from what is in the store, unless it crashed too often or its process is still alive.

    Prefect itself never retries a crash.

    Args:
        flow_run_id: The run's id, or an event's resource id (prefect.flow-run.<id>).
        max_crashes: A run that crashed more often is left alone.
    """
    with get_client(sync_client=True) as client:
        return go_on(client, UUID(flow_run_id.removeprefix("prefect.flow-run.")), max_crashes)
