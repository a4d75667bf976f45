"""Runs that lost their process while nobody looked after them: found by `pairline up`, before a worker begins.

Prefect leaves them as they are for ever: a Pending run is handed out once, a Cancelling one is ended by its worker, and a
Running or Paused one has no heartbeat that could stay away if the server was down when it died; a paused one that is
answered then would be Running without a process. A run that was stopped by `pairline down` says Crashed as its last word,
often too late for a server that is being stopped to act on it. Crashed runs are handed out again here if the automation
that does so otherwise has missed their crash: it hears nothing while the server starts.
"""

from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelled, Crashed, Scheduled

from flows.serve.cancelled_runs import end_what_is_left
from flows.serve.crashed_runs import STOPPED, end_task_runs, go_on, had_process
from flows.serve.run_processes import processes_of_run
from flows.serve.settings import POOL

RESUME = "resume-crashed/resume-crashed"
RESUME_AUTOMATION = "resume a crashed run"  # prefect.yaml
CRASHES_SINCE = timedelta(days=1)  # who left a run alone for longer does not want it back
LOOKED_AT = (StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING, StateType.CRASHED)


def settle_stranded_runs(own_worker: str) -> list[str]:
    """Give every stranded run of the pool the state that lets it go on or end. -> what was done, a line a run

    Nothing is touched while another worker is at work in the pool: its runs are on another machine.
    """
    with get_client(sync_client=True) as client:
        if other_workers(client, own_worker):
            return []
        return [_settle(client, run) for run in stranded_runs(client)] + _resume(client)


def resume_overlooked_crashes() -> list[str]:
    """Have crashed runs go on that `resume-crashed` was not started for. -> what was done, a line a run"""
    with get_client(sync_client=True) as client:
        return _resume(client)


def _resume(client: SyncPrefectClient) -> list[str]:
    return [go_on(client, run.id).message or "" for run in overlooked_crashes(client)]


def overlooked_crashes(client: SyncPrefectClient) -> list[FlowRun]:
    """Return runs that crashed during the last day and were not looked at since; none while the automation is switched
    off.
    """
    automation = client.find_automation(RESUME_AUTOMATION)
    if automation is None or not automation.enabled:
        return []
    crashed = [
        run
        for run in runs_in(client, StateType.CRASHED)
        if run.deployment_id is not None and _state(run).timestamp > datetime.now(UTC) - CRASHES_SINCE
    ]
    if not crashed:
        return []
    ours = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[client.read_deployment_by_name(RESUME).id])
    )
    looks = client.read_flow_runs(flow_run_filter=ours, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=200)
    return [
        run
        for run in crashed
        if not any(
            str(run.id) in str(look.parameters.get("flow_run_id"))
            and look.created
            and look.created > _state(run).timestamp
            for look in looks
        )
    ]


def runs_in(client: SyncPrefectClient, *types: StateType) -> list[FlowRun]:
    """Return the pool's newest runs whose state is of one of these types."""
    states = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))))
    runs = client.read_flow_runs(flow_run_filter=states, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=200)
    return [run for run in runs if run.work_pool_name == POOL]


def _state(run: FlowRun) -> State:
    """Of a run that was found by its state."""
    assert run.state is not None
    return run.state


def other_workers(client: SyncPrefectClient, own_worker: str) -> list[str]:
    """Return names of the pool's other workers that are online."""
    workers = client.request(
        "POST", "/work_pools/{work_pool_name}/workers/filter", path_params={"work_pool_name": POOL}, json={}
    ).json()
    return [
        worker["name"] for worker in workers if worker["status"] == "ONLINE" and worker["name"] != own_worker
    ]


def stranded_runs(client: SyncPrefectClient) -> list[FlowRun]:
    """Return runs of the pool that say they are at work and have no process here, and those that were asked to stop."""
    return [
        run
        for run in runs_in(client, *LOOKED_AT)
        if had_process(_state(run))
        and not processes_of_run(run.id)
        and (_state(run).type != StateType.CRASHED or STOPPED in (_state(run).message or ""))
    ]


def end_of(state: StateType) -> State | None:
    """Return the state that a run without a process gets first; None for one that has said its last word."""
    match state:
        case StateType.CANCELLING:
            return Cancelled(message="Its process had ended when its worker was away.")
        case StateType.RUNNING | StateType.PAUSED:
            return Crashed(message="Its process was gone when a worker was started again.")
        case StateType.CRASHED:
            return None
        case _:
            return Scheduled(message="It had not begun when its worker went away.")


def _settle(client: SyncPrefectClient, run: FlowRun) -> str:
    before = _state(run)
    state = end_of(before.type)
    if state is not None:
        client.set_flow_run_state(run.id, state, force=True)
    if state is None or state.is_crashed():
        return go_on(client, run.id).message or ""
    end_task_runs(client, run.id)
    end_what_is_left(run.id)
    return f"{run.name} was {before.name} without a process: {state.name}"
