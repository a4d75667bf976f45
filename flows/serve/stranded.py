"""Runs that lost their process while no worker looked after them: found when a worker is started, before it begins.

Prefect leaves them as they are for ever: a Pending run is handed out once, a Cancelling one is ended by its worker, and a
Running or Paused one has no heartbeat that could stay away if the server was down when it died; a paused one that is
answered then would be Running without a process. A run that was stopped by `pairline down` says Crashed as its last word,
often too late for a server that is being stopped to act on it. Crashed runs are handed out again here: the automation that
does so otherwise misses what happens while the server starts.
"""

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelled, Crashed, Scheduled

from flows.maintenance import STOPPED, go_on, had_process
from flows.run_processes import processes_of_run
from flows.serve.settings import POOL

LOOKED_AT = (StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING, StateType.CRASHED)


def settle_stranded_runs(own_worker: str) -> list[str]:
    """Give every stranded run of the pool the state that lets it go on or end. -> what was done, a line a run

    Nothing is touched while another worker is at work in the pool: its runs are on another machine.
    """
    with get_client(sync_client=True) as client:
        if other_workers(client, own_worker):
            return []
        return [_settle(client, run) for run in stranded_runs(client)]


def other_workers(client: SyncPrefectClient, own_worker: str) -> list[str]:
    """Names of the pool's other workers that are online."""
    workers = client.request("POST", f"/work_pools/{POOL}/workers/filter", json={}).json()
    return [worker["name"] for worker in workers if worker["status"] == "ONLINE" and worker["name"] != own_worker]


def stranded_runs(client: SyncPrefectClient) -> list[FlowRun]:
    """Runs of the pool that say they are at work and have no process here, and those that were asked to stop."""
    states = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(LOOKED_AT))))
    runs = client.read_flow_runs(flow_run_filter=states, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=200)
    return [run for run in runs if run.work_pool_name == POOL and had_process(run.state) and not processes_of_run(run.id)
            and (run.state.type != StateType.CRASHED or STOPPED in (run.state.message or ""))]


def end_of(state: StateType) -> State | None:
    """The state that a run without a process gets first; None for one that has said its last word."""
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
    state = end_of(run.state.type)
    if state is not None:
        client.set_flow_run_state(run.id, state, force=True)
    if state is None or state.is_crashed():
        return go_on(client, run.id).message
    return f"{run.name} was {run.state.name} without a process: {state.name}"
