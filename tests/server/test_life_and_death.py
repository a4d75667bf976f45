"""Real kills of real processes under a real server and worker: one complete result, no step done twice, nothing left."""

import json
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from prefect.states import Cancelling

from dpo_core.contract.errors import Preempted
from dpo_core.contract.jobs import TrainResult
from dpo_core.contract.results import ERROR_FILE, RESULT_FILE
from flows.serve.run_processes import processes_of_run
from flows.serve.server_objects import DEAD_RUNS, SECONDS_WITHOUT_HEARTBEAT, dead_runs, make_automation
from flows.serve.settings import HEARTBEAT_SECONDS
from tests.flows.conftest import launches, step_processes
from tests.server.conftest import Installation, kill, wait_until, without_training
from tests.tiny_stage import tiny_values

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]
STEPS_BEFORE = ("mix", "reference")
SECONDS_TO_ACT = (
    120  # the server looks every five seconds which bounds have passed; a busy machine takes longer
)
SECONDS_TO_STOP = 120  # a step and a checkpoint, which take a few of an idle machine


@pytest.fixture
def training(installation: Installation, inputs: Path, prepared: Path) -> Callable[..., tuple[UUID, Path]]:
    """Starts a long training in a store of its own and waits until it has taken steps."""

    def begin(num_epochs: int) -> tuple[UUID, Path]:
        store = without_training(prepared)
        for log in store.glob("*/*/log.txt"):
            log.write_text("")
        train = {"num_epochs": num_epochs, "checkpoint_every": 20, "global_batch_pairs": 2}
        config = tiny_values(inputs, store, train=train)
        run = installation.start("dpo-stage/manual", {"config": config})
        wait_until(
            lambda: any(store.glob("train/*/checkpoints/[!.]*")),
            "a checkpoint",
            lambda: installation.describe(run),
        )
        assert not installation.run(run).state.is_final()
        return run, store

    return begin


def check_one_result(installation: Installation, run: UUID, store: Path, launches_of_train: int) -> None:
    """The run completed, nothing before the training ran again, the training was started so often and made one result."""
    done = installation.wait_for_end(run)
    if not done.state.is_completed():  # marked Crashed, and about to be resumed
        wait_until(
            lambda: installation.run(run).state.is_completed(),
            "its completion",
            lambda: installation.describe(run),
        )
    (result,) = store.glob(f"train/*/{RESULT_FILE}")
    resumed = TrainResult.model_validate_json(result.read_bytes()).resumed_from_step
    assert (resumed is not None) is (launches_of_train > 1)
    counted = launches(store)
    assert counted["train"] == launches_of_train
    assert [counted.get(step, 0) for step in STEPS_BEFORE] == [0, 0]
    assert {counted[step] for step in ("export", "evaluate")} == {1}
    assert len(list(store.glob("handoff/*/handoff.json"))) == 1
    wait_until(lambda: not processes_of_run(run) and not step_processes(store), "the end of its processes")


def test_cancelling_stops_the_trainer_with_a_checkpoint_and_leaves_nothing(installation, training):
    run, store = training(num_epochs=4000)
    saved = newest_checkpoint(store)
    with installation.client() as client:
        client.set_flow_run_state(run, Cancelling())
    asked = time.monotonic()
    done = installation.wait_for_end(run)
    assert done.state.is_cancelled()
    wait_until(
        lambda: not processes_of_run(run) and not step_processes(store),
        "the end of its processes",
        seconds=SECONDS_TO_STOP,
    )
    assert time.monotonic() - asked < SECONDS_TO_STOP
    (told,) = store.glob(f"train/*/{ERROR_FILE}")  # the trainer ended by itself
    assert json.loads(told.read_text())["kind"] == Preempted.kind
    assert newest_checkpoint(store) > saved
    assert not list(store.glob(f"train/*/{RESULT_FILE}"))


def newest_checkpoint(store: Path) -> int:
    return max(
        int("".join(filter(str.isdigit, path.name))) for path in store.glob("train/*/checkpoints/[!.]*")
    )


def test_a_killed_flow_process_is_resumed_by_itself(installation, training):
    run, store = training(num_epochs=24)
    kill(processes_of_run(run))
    wait_until(lambda: not step_processes(store), "the end of the trainer")
    wait_until(lambda: installation.run(run).state.name != "Running", "a new state")
    check_one_result(installation, run, store, launches_of_train=2)
    with installation.client() as client:
        states = client.request("GET", "/flow_run_states/", params={"flow_run_id": str(run)}).json()
    names = [state["name"] for state in states]
    assert "Crashed" in names
    assert "AwaitingRetry" in names


def test_a_killed_worker_and_a_killed_server_cost_nothing(installation, training):
    """The run goes on without either, and its end is known when both are back."""
    run, store = training(num_epochs=24)
    for part in (installation.worker, installation.server):
        kill([part.pid()])
        wait_until(lambda part=part: part.pid() is None, "its end")
    again = installation.pairline("up")
    assert again.returncode == 0, again.stderr
    check_one_result(installation, run, store, launches_of_train=1)


def test_a_run_that_dies_with_its_worker_is_missed_by_the_server_and_goes_on_with_the_next(
    installation, training
):
    """Nobody reports this death: the server alone lives, and has only the heartbeats that stay away."""
    bound = HEARTBEAT_SECONDS + 30  # instead of 90 s, which `up` sets again; two heartbeats are 30 s apart
    with installation.client() as client:
        make_automation(client, dead_runs(bound))
    run, store = training(num_epochs=24)
    worker = installation.worker.pid()
    kill((worker, *processes_of_run(run)))
    killed = time.monotonic()
    wait_until(lambda: not step_processes(store) and installation.worker.pid() is None, "their end")
    before = installation.run(run).state
    assert before.is_running() or time.monotonic() - killed > bound - HEARTBEAT_SECONDS, before
    wait_until(
        lambda: installation.run(run).state.is_crashed(), "being missed", seconds=bound + SECONDS_TO_ACT
    )
    assert time.monotonic() - killed < bound + SECONDS_TO_ACT
    assert "No heartbeat" in installation.run(run).state.message
    again = installation.pairline("up")
    assert again.returncode == 0, again.stderr
    check_one_result(installation, run, store, launches_of_train=2)
    with installation.client() as client:
        assert client.find_automation(DEAD_RUNS).trigger.within == timedelta(
            seconds=SECONDS_WITHOUT_HEARTBEAT
        )


def test_what_is_taken_down_in_the_middle_goes_on_after_up(installation, training):
    run, store = training(num_epochs=80)
    down = installation.pairline("down")
    assert down.returncode == 0, down.stderr
    assert not processes_of_run(run)
    assert not step_processes(store)
    again = installation.pairline("up")
    assert again.returncode == 0, again.stderr
    check_one_result(installation, run, store, launches_of_train=2)
