"""Flows that keep a team's server and store in order. Their deployments stand in prefect.yaml."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import ObjectNotFound
from prefect.states import AwaitingRetry, Completed, Failed, Running, State
from pydantic import Field

from flows.run_processes import processes_of_run
from tasks.garbage import collect, in_words
from tasks.launch.docker import Engine
from tasks.launch.reap import RunState
from tasks.launch.reap import reap as reap_containers

STOPPED = "termination signal"  # in the message of a run that got SIGTERM
Days, Count = Annotated[float, Field(ge=0)], Annotated[int, Field(ge=0)]  # a form's descriptions come from docstrings
SECONDS_BEFORE_RESUMING = 5  # a dying trainer lets go of its lock within moments


@flow(name="store-gc", persist_result=False)
def store_gc(store_root: Path = Path(".pairline"), older_than_days: Days = 30.0, keep_per_name: Count = 1,
             dry_run: bool = True) -> str:
    """Remove step results and snapshots that no kept run leads to (see ``tasks/garbage.py``).

    Args:
        store_root: Folder of the store (a recipe's store.root).
        older_than_days: Runs and results younger than this stay.
        keep_per_name: Newest completed runs of each name that stay whatever their age.
        dry_run: Only say what would go.
    """
    if not (store_root.expanduser() / "runs").is_dir():  # a fresh installation's first Sunday
        return f"There were no runs in {store_root.expanduser().resolve()} yet, so nothing is to be removed."
    found = collect(store_root, older_than_days, keep_per_name, dry_run)
    rows = [{"entry": str(entry.path), "MB": round(entry.num_bytes / 1e6, 1), "days unused": round(entry.age_days, 1),
             "removed": entry.path in found.removed} for entry in found.garbage]
    create_table_artifact(rows, key="store-gc", description=in_words(found, dry_run))
    get_run_logger().info(in_words(found, dry_run))
    return in_words(found, dry_run)


@flow(name="reap", persist_result=False)
def reap(dry_run: bool = False) -> str:
    """Stop and remove the containers of this machine that no live run owns (see ``tasks/launch/reap.py``).

    Args:
        dry_run: Only say which would go.
    """
    engine = Engine()
    engine.check()
    found = reap_containers(engine, dry_run, state_of)
    rows = [{"container": one.container, "step": one.step, "run": one.run, "why": one.reason,
             "done": one.done} for one in found]
    create_table_artifact(rows, key="reap", description="Containers with Pairline's label")
    return f"{len(found)} containers, {sum(bool(one.reason) for one in found)} of them nobody's"


def state_of(flow_run_id: str) -> RunState:
    """What the server says of the run."""
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(UUID(flow_run_id)).state
        except (ObjectNotFound, ValueError):
            return "unknown"
    return "over" if state is not None and state.is_final() else "live"


@flow(name="failed-trigger", persist_result=False)
def failed_trigger(automation: str, reason: str, event: dict[str, Any] | None = None) -> State:
    """A red run for an automation whose action failed: without it nobody sees that an event started nothing.

    Args:
        automation: Name of the automation.
        reason: Why its action failed.
        event: What the server tells of it.
    """
    get_run_logger().error("The automation %s did not do its work: %s. What it was told: %s", automation, reason, event)
    return Failed(message=f"The automation {automation} did not do its work: {reason}")


@flow(name="resume-crashed", persist_result=False)
def resume_crashed(flow_run_id: str, max_crashes: Count = 3) -> State:
    """Have a crashed run go on from what is in the store, unless it crashed too often or its process is still alive.

    Prefect itself never retries a crash.

    Args:
        flow_run_id: The run's id, or an event's resource id (prefect.flow-run.<id>).
        max_crashes: A run that crashed more often is left alone.
    """
    with get_client(sync_client=True) as client:
        return go_on(client, UUID(flow_run_id.removeprefix("prefect.flow-run.")), max_crashes)


def go_on(client: SyncPrefectClient, run_id: UUID, max_crashes: int = 3) -> State:
    """Hand a crashed run out again, within the limits of ``resume_crashed``. -> what was done, as a state"""
    run = client.read_flow_run(run_id)
    if run.state is None or run.state.type != StateType.CRASHED:
        return Completed(message=f"{run.name} is {run.state.name if run.state else 'unknown'}, no longer Crashed.")
    if run.deployment_id is None:
        return Completed(message=f"{run.name} is left alone: it belongs to no deployment, so no worker would start it "
                         "again. Who started it can: `pairline run`, or the flow that it is a part of.")
    states = client.read_flow_run_states(run_id)
    before = states[-2] if len(states) > 1 else None
    if before is not None and not had_process(before):
        client.set_flow_run_state(run_id, before, force=True)
        return Completed(message=f"{run.name} is {before.name} as before: it had no process that could die. A heartbeat had "
                         "come late.")
    if processes := processes_of_run(run_id):
        alive = before if before is not None and before.type == StateType.PAUSED else Running(
            message="Its process is alive; only its heartbeats were lost.")
        client.set_flow_run_state(run_id, alive, force=True)
        return Completed(message=f"{run.name} still runs (process {processes[0]}): heartbeats were lost, nothing else.")
    crashes = num_crashes(states)
    if crashes > max_crashes:
        return Failed(message=f"{run.name} crashed {crashes} times and is left alone. Look at its log, then retry it by "
                      "hand; finished steps are kept.")
    again = AwaitingRetry(scheduled_time=run.state.timestamp + timedelta(seconds=SECONDS_BEFORE_RESUMING),
                          message=f"Resumed after crash {crashes} of at most {max_crashes}; finished steps are kept.")
    # Not forced: Prefect then forgets what the run has asked so far, and an approval is asked for anew.
    answer = client.set_flow_run_state(run_id, again)
    if answer.status != SetStateStatus.ACCEPT:
        return Failed(message=f"{run.name} crashed and cannot be handed out again: {getattr(answer.details, 'reason', '')}")
    return Completed(message=f"{run.name} goes on after crash {crashes}.")


def had_process(state: State) -> bool:
    """Whether a run in this state is at work in a process. A scheduled one is not yet, a suspended one no longer."""
    suspended = state.type == StateType.PAUSED and state.state_details.pause_reschedule
    return state.type != StateType.SCHEDULED and not suspended


def num_crashes(states: list[State]) -> int:
    """How often a run was Crashed, oldest state first. Being asked to stop (`pairline down`) and being called dead by a late
    heartbeat are none."""
    return sum(state.type == StateType.CRASHED and STOPPED not in (state.message or "") and (
        number == 0 or had_process(states[number - 1])) for number, state in enumerate(states))
