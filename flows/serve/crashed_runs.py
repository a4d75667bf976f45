"""What becomes of a run whose process died: handed out again, given back what it was, or left alone."""

from datetime import timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.states import AwaitingRetry, Completed, Crashed, Failed, Running, State

from flows.serve.run_processes import processes_of_run

STOPPED = "termination signal"  # in the message of a run that got SIGTERM
MAX_CRASHES = 10  # what kills a flow is nearly always outside it, and every return is cheap
SECONDS_BEFORE_RESUMING = 5  # a dying trainer lets go of its lock within moments


def go_on(client: SyncPrefectClient, run_id: UUID, max_crashes: int = MAX_CRASHES) -> State:
    """Hand a crashed run out again, within the limits of ``resume_crashed``. -> what was done, as a state"""
    run = client.read_flow_run(run_id)
    if run.state is None or run.state.type != StateType.CRASHED:
        return Completed(
            message=f"{run.name} is {run.state.name if run.state else 'unknown'}, no longer Crashed."
        )
    if run.deployment_id is None:
        return Completed(
            message=f"{run.name} is left alone: it belongs to no deployment, so no worker would start it "
            "again. Who started it can: `pairline run`, or the flow that it is a part of."
        )
    states = client.read_flow_run_states(run_id)
    before = states[-2] if len(states) > 1 else None
    if before is not None and not had_process(before):
        client.set_flow_run_state(run_id, before, force=True)
        return Completed(
            message=f"{run.name} is {before.name} as before: it had no process that could die. A heartbeat had "
            "come late."
        )
    if processes := processes_of_run(run_id):
        alive = (
            before
            if before is not None and before.type == StateType.PAUSED
            else Running(message="Its process is alive; only its heartbeats were lost.")
        )
        client.set_flow_run_state(run_id, alive, force=True)
        return Completed(
            message=f"{run.name} still runs (process {processes[0]}): heartbeats were lost, nothing else."
        )
    end_task_runs(client, run_id)
    crashes = num_crashes(states)
    if crashes > max_crashes:
        return Failed(
            message=f"{run.name} crashed {crashes} times and is left alone. Look at its log, then retry it by "
            "hand; finished steps are kept."
        )
    again: State = AwaitingRetry(
        scheduled_time=run.state.timestamp + timedelta(seconds=SECONDS_BEFORE_RESUMING),
        message=f"Resumed after crash {crashes} of at most {max_crashes}; finished steps are kept.",
    )
    # Not forced: Prefect then forgets what the run has asked so far, and an approval is asked for anew.
    answer = client.set_flow_run_state(run_id, again)
    if answer.status != SetStateStatus.ACCEPT:
        return Failed(
            message=f"{run.name} crashed and cannot be handed out again: {getattr(answer.details, 'reason', '')}"
        )
    return Completed(message=f"{run.name} goes on after crash {crashes}.")


def end_task_runs(client: SyncPrefectClient, run_id: UUID) -> None:
    """Call the tasks Crashed that were at work when their run's process died. Prefect shows them as Running for ever."""
    states = TaskRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])
    at_work = TaskRunFilter(state=TaskRunFilterState(type=states))
    for task_run in client.read_task_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])), task_run_filter=at_work
    ):
        client.set_task_run_state(task_run.id, Crashed(message="Its run's process was gone."), force=True)


def had_process(state: State) -> bool:
    """Return whether a run in this state is at work in a process. A scheduled one is not yet, a suspended one no
    longer.
    """
    suspended = state.type == StateType.PAUSED and state.state_details.pause_reschedule
    return state.type != StateType.SCHEDULED and not suspended


def num_crashes(states: list[State]) -> int:
    """Return how often a run was Crashed, oldest state first. Being asked to stop (`pairline down`) and being called
    dead by a late heartbeat are none."""
    return sum(
        state.type == StateType.CRASHED
        and STOPPED not in (state.message or "")
        and (number == 0 or had_process(states[number - 1]))
        for number, state in enumerate(states)
    )
