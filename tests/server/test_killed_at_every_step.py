"""Runs under a rain of kills: step after step the flow dies, or the server (and the worker), and is started again."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from dpo_core.contract.jobs import TrainResult
from dpo_core.contract.results import RESULT_FILE
from flows.serve.background import Background
from flows.serve.run_processes import processes_of_run
from tasks.run.folder import read_runs
from tests.flows.conftest import launches, step_processes
from tests.server.conftest import Installation, kill, wait_until
from tests.tiny_stage import tiny_values
from tests.waiting import beside

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]
STEPS = ("fetch checkpoint", "mix data", "cache reference", "train", "evaluate", "hand off")
PROGRAMS = ("mix", "reference", "train", "export", "evaluate")


def steps_begun(store: Path) -> list[str]:
    """Steps of the newest run in the store, the last of them at work."""
    runs = read_runs(store)
    return [task.name for task in runs[-1][1].tasks] if runs else []


class HeldSteps:
    """Stops every program of a step below ``store`` as it appears, until it is let go: a step is at work for as long as the
    kills around it take, however fast it is and however slow the machine."""

    def __init__(self, store: Path) -> None:
        self.store, self.seen = store, set[int]()

    def hold(self, over: threading.Event) -> None:
        """Until the end."""
        while not over.wait(0.1):
            for pid in set(step_processes(self.store)) - self.seen:
                self.seen.add(pid)
                self._signal(pid, signal.SIGSTOP)

    def let_go(self) -> None:
        """Of those that are held now."""
        for pid in tuple(self.seen):
            self._signal(pid, signal.SIGCONT)

    @classmethod
    @contextlib.contextmanager
    def below(cls, store: Path) -> Iterator["HeldSteps"]:
        held = cls(store)
        try:
            with beside(held.hold):
                yield held
        finally:
            held.let_go()

    @staticmethod
    def _signal(pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_and_start(installation: Installation, *parts: Background) -> None:
    """They die, and `pairline up` starts them again."""
    for part in parts:
        kill([part.pid()])
        wait_until(lambda part=part: part.pid() is None, "its end")
    again = installation.pairline("up")
    assert again.returncode == 0, again.stderr


def run_under_kills(
    installation: Installation,
    inputs: Path,
    store: Path,
    flow_dies_in: set[str],
    kills: int,
    *others: Background,
) -> tuple[UUID, list[str]]:
    """Flow or ``others`` die in the step that is at work when the last kill is over, ``kills`` times. -> the run, those
    steps"""
    train = {"num_epochs": 8, "checkpoint_every": 10}
    run = installation.start("dpo-stage/manual", {"config": tiny_values(inputs, store, train=train)})
    met: list[str] = []

    def next_step() -> str | None:
        state = installation.run(run).state
        if state.is_completed() or state.is_failed():
            return "over"
        at_work = [step for step in steps_begun(store)[-1:] if step in STEPS and step not in met]
        if at_work and len(met) < kills:
            return at_work[0]
        held.let_go()
        return None

    with HeldSteps.below(store) as held:
        while (
            step := wait_until(next_step, f"a step after {met}", lambda: installation.describe(run))
        ) != "over":
            met.append(step)
            if step in flow_dies_in:
                num_runs = len(read_runs(store))
                kill(processes_of_run(run))
                wait_until(
                    lambda num_runs=num_runs: len(read_runs(store)) > num_runs,
                    "its return",
                    lambda: installation.describe(run),
                )
            else:
                kill_and_start(installation, *others)
    assert installation.run(run).state.is_completed(), installation.run(run).state
    return run, met


def test_whatever_is_killed_at_whichever_step_ends_in_one_complete_result(installation, inputs, tmp_path):
    """A flow dies just after the server, too, which then does not know the event that the crash's follows."""
    weights, server, worker = [], installation.server, installation.worker
    patterns = ({"mix data", "cache reference", "train"}, 4, [server]), (set(), 3, [server, worker])
    for flow_dies_in, kills, others in patterns:
        store = tmp_path / f"{len(weights)}"
        run, met = run_under_kills(installation, inputs, store, flow_dies_in, kills, *others)
        assert met == list(STEPS[:kills])
        counts = {name: len(list(store.glob(f"{name}/*/{RESULT_FILE}"))) for name in PROGRAMS}
        assert set(counts.values()) == {1}, counts
        started = launches(store)
        assert sum(started[name] for name in PROGRAMS) <= len(PROGRAMS) + len(flow_dies_in), started
        assert max(started.values()) <= 2, started
        assert len(list(store.glob("handoff/*/handoff.json"))) == 1
        wait_until(
            lambda run=run, store=store: not processes_of_run(run) and not step_processes(store), "its end"
        )
        (result,) = store.glob(f"train/*/{RESULT_FILE}")
        weights.append(TrainResult.model_validate_json(result.read_bytes()).weights_sha256)
    assert weights[0] == weights[1]
