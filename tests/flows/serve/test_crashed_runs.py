"""What becomes of a run that is called Crashed: handed out again, given back what it was, or left alone."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

import pytest
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient
from prefect.states import AwaitingRetry, Completed, Crashed, Pending, Running, Scheduled, State

from flows.serve.crashed_runs import go_on
from flows.serve.run_processes import RUN_VARIABLE, processes_of_run
from tests.flows.serve.waiting_states import paused, suspended
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]


@flow(name="goes-on")
def goes_on() -> None:
    """Never run: its runs get their states from the tests."""


@task
def a_task() -> None:
    """Never run either."""


@pytest.fixture
def deployed(client: SyncPrefectClient) -> UUID:
    """The id of a deployment."""
    return client.create_deployment(client.create_flow(goes_on), f"deployed-{uuid4()}")


def run_with(client: SyncPrefectClient, deployment: UUID | None, *states: State) -> UUID:
    """A run that was in these states, and not by force."""
    run = (
        client.create_flow_run_from_deployment(deployment) if deployment else client.create_flow_run(goes_on)
    )
    for state in states:
        client.set_flow_run_state(run.id, state)
    names = [state.name for state in client.read_flow_run_states(run.id)]
    assert names[-len(states) :] == [state.name for state in states]
    return run.id


def state_of(client: SyncPrefectClient, run: UUID) -> State:
    return client.read_flow_run(run).state


@contextmanager
def process_of(run: UUID) -> Iterator[None]:
    """A process that looks like the run's."""
    with subprocess.Popen(["sleep", "600"], env=os.environ | {RUN_VARIABLE: str(run)}) as process:
        try:
            # The kernel shows a new program's environment a moment after it has told that it runs.
            wait_until(lambda: processes_of_run(run), "the process")
            yield
        finally:
            process.kill()


def test_a_crashed_run_of_a_deployment_is_handed_out_again_up_to_the_limit(client, deployed):
    run = run_with(client, deployed, Pending(), Running(), Crashed())
    for crash in (1, 2):
        assert go_on(client, run, max_crashes=2).message.endswith(f"goes on after crash {crash}.")
        assert state_of(client, run).name == "AwaitingRetry"
        for state in (Pending(), Running(), Crashed()):
            client.set_flow_run_state(run, state, force=True)
    assert go_on(client, run, max_crashes=2).is_failed()
    assert state_of(client, run).is_crashed()


def test_tasks_that_died_with_their_run_are_not_shown_as_running(client, deployed):
    run = run_with(client, deployed, Pending(), Running(), Crashed())
    done, at_work = (
        client.create_task_run(a_task, run, dynamic_key=f"{number}", state=state).id
        for number, state in enumerate((Completed(), Running()))
    )
    go_on(client, run)
    assert client.read_task_run(done).state.is_completed()
    assert client.read_task_run(at_work).state.is_crashed()


def test_a_run_that_no_worker_would_start_is_left_alone(client, deployed):
    run = run_with(client, None, Pending(), Running(), Crashed())
    assert "is left alone" in go_on(client, run).message
    assert state_of(client, run).is_crashed()


def test_a_run_inside_another_is_left_to_it(prefect_server, client):
    seen: list[UUID] = []

    @flow(name="inner")
    def inner() -> None:
        from prefect.runtime import flow_run

        seen.append(UUID(flow_run.get_id()))
        raise KeyboardInterrupt

    @flow(name="outer")
    def outer() -> None:
        inner()

    with pytest.raises(KeyboardInterrupt):
        outer()
    assert state_of(client, seen[0]).is_crashed()
    assert "is left alone" in go_on(client, seen[0]).message
    assert state_of(client, seen[0]).is_crashed()


@pytest.mark.parametrize("made", [suspended, AwaitingRetry])
def test_what_had_no_process_gets_its_state_back_and_counts_as_no_crash(
    client, deployed, made: Callable[[], State]
):
    before = made()
    first = (Pending(), Running()) if before.name == "Suspended" else (Pending(), Running(), Crashed())
    run = run_with(client, deployed, *first, before, Crashed(message="No heartbeat"))
    details = before.state_details
    assert f"is {before.name} as before" in go_on(client, run, max_crashes=0).message
    now = state_of(client, run)
    assert (
        now.name,
        now.state_details.pause_key,
        now.state_details.pause_timeout,
        now.state_details.pause_reschedule,
    ) == (before.name, details.pause_key, details.pause_timeout, details.pause_reschedule)


def test_a_suspended_run_that_was_called_dead_can_still_be_answered(client, deployed):
    asked = suspended()
    run = run_with(client, deployed, Pending(), Running(), asked, Crashed(message="No heartbeat"))
    go_on(client, run)
    client.resume_flow_run(run)
    assert state_of(client, run).is_scheduled()
    for state in (Pending(), Running(), suspended()):
        answer = client.set_flow_run_state(run, state)
    assert (
        answer.details.reason == "This suspend has already fired."
    )  # so the answer is read, and not asked for again
    assert client.read_flow_run(run).run_count == 1


def test_a_paused_run_whose_process_died_asks_anew(client, deployed):
    run = run_with(client, deployed, Pending(), Running(), paused(), Crashed())
    assert "goes on after crash 1" in go_on(client, run).message
    for state in (Scheduled(), Pending(), Running()):
        client.set_flow_run_state(run, state)
    assert client.read_flow_run(run).run_count == 2  # a part of the key that it asks by
    assert client.set_flow_run_state(run, paused()).status == "ACCEPT"


@pytest.mark.parametrize("made", [Running, paused])
def test_a_run_whose_process_lives_gets_its_state_back(client, deployed, made: Callable[[], State]):
    before = made()
    states = (Pending(), Running()) if before.name == "Running" else (Pending(), Running(), before)
    run = run_with(client, deployed, *states, Crashed(message="No heartbeat"))
    with process_of(run):
        assert "still runs" in go_on(client, run).message
    assert state_of(client, run).name == before.name
