"""Gate and approval on a real server: who passes, who does not, and that nothing leaves the store without a yes."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.settings import PREFECT_API_URL

import flows.release
from dpo_core.contract.errors import ApprovalRejected, ApprovalTimedOut, ConfigError, GateFailed
from flows.dpo_stage import dpo_stage
from flows.settings.stage_config import StageConfig
from tasks.run.folder import is_alive, read_runs
from tests.flows.conftest import last_run, launches, pairline, tiny_config
from tests.prefect_database import new_prefect_home
from tests.waiting import PATIENCE_SECONDS, beside, wait_until
from tests.warm.started import python_path

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]
EVERY_RULE = {
    "accuracy_at_least": 0.1,
    "length_ratio_at_most": 100.0,
    "kl_at_most": 100.0,
    "checker_not_below_sft": True,
}
APPROVE = {"decision": "approve", "name": "Ann", "reason": "better answers"}
REJECT = {"decision": "reject", "name": "Ann", "reason": "too short"}
CHOSEN_STEP = r"the weights of step \d, the best of 2 evaluations by held-out rewards/accuracies"
SETTINGS = {"evaluation": {"measure_kl": True, "every": 2}, "train": {"max_steps": 4, "keep_best": {}}}
MeasuredStore = Callable[..., StageConfig]


@pytest.fixture(scope="module")
def measured(prefect_server, tiny_inputs, tmp_path_factory) -> Path:
    """The store of a run that went as far as its evaluation: a gate that nothing passes."""
    store = tmp_path_factory.mktemp("measured") / "store"
    gate = {"accuracy_at_least": 0.0, "kl_at_most": 1e-9}
    config = tiny_config(tiny_inputs, store, gate=gate, **SETTINGS)
    with pytest.raises(GateFailed, match=r"KL to reference at most 1e-09: got 0\.\d+"):
        dpo_stage(config)
    return store


@pytest.fixture
def gated(measured: Path, tiny_inputs, tmp_path) -> MeasuredStore:
    """Makes the configuration of a run in a copy of that store, with another gate. Its steps are all done."""
    store = shutil.copytree(measured, tmp_path / "store", symlinks=True)
    shutil.rmtree(store / "runs")

    def config(**gate: object) -> StageConfig:
        return tiny_config(tiny_inputs, store, gate=gate, **SETTINGS)

    return config


def flow_run_of(config: StageConfig) -> FlowRun:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(UUID(last_run(config.store.root)[1].flow_run_id))


def states_of(config: StageConfig) -> list[str]:
    with get_client(sync_client=True) as client:
        return [state.name for state in client.read_flow_run_states(flow_run_of(config).id)]


def nothing_left_the_store(config: StageConfig) -> bool:
    return not any((config.store.root / place).exists() for place in ("published", "handoff"))


def paused_runs(client: SyncPrefectClient) -> set[UUID]:
    """Runs that wait for an answer, those that other tests left on the server included."""
    paused = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED])))
    return {run.id for run in client.read_flow_runs(flow_run_filter=paused)}


@contextmanager
def answering(*answers: dict) -> Iterator[list[str]]:
    """Gives answers, one after the other, to the next run that waits. -> statuses of the API's replies"""
    replies: list[str] = []

    with get_client(sync_client=True) as client:
        others = paused_runs(client)  # before the run that is to wait has begun

    def answer(over: threading.Event) -> None:
        with get_client(sync_client=True) as client:
            for given in answers:
                while not over.wait(0.2):
                    if waiting := paused_runs(client) - others:
                        replies.append(client.resume_flow_run(waiting.pop(), run_input=given).status)
                        break

    with beside(answer):
        yield replies


@pytest.fixture(autouse=True)
def _look_often(monkeypatch):
    monkeypatch.setattr(flows.release, "SECONDS_BETWEEN_LOOKS", 0.3)


def test_a_gate_that_does_not_hold_ends_the_run_in_its_own_state(gated):
    config = gated(accuracy_at_least=0.0, length_ratio_at_most=1e-6)
    before = launches(config.store.root)
    with pytest.raises(GateFailed, match=rf"mean length ratio at most 1e-06: got \d.* \({CHOSEN_STEP}"):
        dpo_stage(config)
    assert launches(config.store.root) == before
    folder, record = last_run(config.store.root)
    assert (record.state, record.error_kind, record.tasks[-1].name, record.tasks[-1].state) == (
        "failed",
        "gate",
        "gate",
        "failed",
    )
    assert "mean length ratio at most" in record.error
    run = flow_run_of(config)
    assert (run.state.type, run.state.name) == (StateType.FAILED, "GateFailed")
    assert "mean length ratio at most" in run.state.message
    assert nothing_left_the_store(config)
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        )
    (table,) = [artifact for artifact in artifacts if artifact.key.endswith("gate")]
    assert [passed in table.data for passed in ('"passed": "yes"', '"passed": "NO"')] == [True, True]
    assert '"rule": "mean length ratio at most"' in table.data
    assert (folder / "gate.json").is_file()


def test_a_gate_that_holds_is_told_to_the_receiving_side(gated):
    handoff = dpo_stage(gated(**EVERY_RULE))
    assert [(check.rule.split()[0], check.passed) for check in handoff.release.checks] == [
        ("held-out", True),
        ("mean", True),
        ("KL", True),
        ("checker", True),
    ]
    assert handoff.release.approval is None


def test_an_approval_lets_it_go_is_recorded_and_asked_for_once(gated):
    config = gated(approval="person", **EVERY_RULE)
    with answering(APPROVE) as replies:
        handoff = dpo_stage(config)
    assert replies == [SetStateStatus.ACCEPT]
    approval = handoff.release.approval
    assert (approval.decision, approval.name, approval.reason, approval.asked_in) == (
        "approve",
        "Ann",
        "better answers",
        "prefect",
    )
    assert states_of(config)[-3:] == ["Paused", "Running", "Completed"]
    folder, record = last_run(config.store.root)
    assert '"Ann"' in (folder / "approval.json").read_text()
    assert record.state == "completed"
    assert dpo_stage(config) == handoff
    assert "Paused" not in states_of(config)


def test_the_person_sees_gate_numbers_and_samples(gated):
    config = gated(approval="person", accuracy_at_least=0.0, timeout_seconds=2)
    with pytest.raises(ApprovalTimedOut):
        dpo_stage(config)
    with get_client(sync_client=True) as client:
        key = "paused-approval-1-description"
        question = json.loads(client.read_flow_run_input(flow_run_of(config).id, key))
    for part in ("held-out accuracy at least", "rewards/accuracies", "\n- after", "Release tiny?"):
        assert part in question
    assert re.search(CHOSEN_STEP, question)


def test_a_rejection_ends_the_run_in_its_own_state_and_the_next_run_asks_again(gated):
    config = gated(approval="person")
    for _ in range(2):
        with (
            answering(REJECT),
            pytest.raises(ApprovalRejected, match="Ann rejected the checkpoint: too short"),
        ):
            dpo_stage(config)
        folder, record = last_run(config.store.root)
        assert (record.state, record.error_kind) == ("failed", "rejected")
        assert '"too short"' in (folder / "approval.json").read_text()
        assert flow_run_of(config).state.name == "ApprovalRejected"
        assert nothing_left_the_store(config)


def test_an_answer_without_a_reason_is_not_taken(gated):
    with answering(
        {"decision": "approve", "name": "Ann", "reason": ""}, {"decision": "maybe"}, {}, APPROVE
    ) as replies:
        dpo_stage(gated(approval="person"))
    assert replies == [SetStateStatus.REJECT] * 3 + [SetStateStatus.ACCEPT]


def test_nobody_answers(gated):
    config = gated(approval="person", timeout_seconds=2)
    with pytest.raises(ApprovalTimedOut, match="within 2 s"):
        dpo_stage(config)
    run = flow_run_of(config)
    assert (run.state.type, run.state.name) == (StateType.FAILED, "ApprovalTimedOut")
    assert last_run(config.store.root)[1].error_kind == "unanswered"
    assert nothing_left_the_store(config)


def test_suspending_where_no_worker_would_start_it_again_is_refused_at_once(gated):
    config = gated(approval="person", wait="suspend")
    with pytest.raises(ConfigError, match=r"set gate\.wait to pause"):
        dpo_stage(config)
    assert not (config.store.root / "runs").exists()


@pytest.fixture
def served(tmp_path) -> Iterator[str]:
    """A process that starts the runs of a deployment, as a worker does. -> the deployment's name"""
    script = "from flows.dpo_stage import dpo_stage; dpo_stage.serve(name='suspending')"
    environment = os.environ | {
        "PREFECT_API_URL": PREFECT_API_URL.value(),
        "PYTHONPATH": python_path(),
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    }
    with (tmp_path / "served.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=log, stderr=log)
    try:
        yield "dpo-stage/suspending"
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def test_a_suspended_run_frees_its_process_and_goes_on_from_the_store(gated, served):
    config = gated(approval="person", wait="suspend", **EVERY_RULE)
    before = launches(config.store.root)
    with get_client(sync_client=True) as client:

        def deployment():
            try:
                return client.read_deployment_by_name(served)
            except Exception:
                return None

        deployed = wait_until(deployment, "the deployment")
        run = client.create_flow_run_from_deployment(
            deployed.id, parameters={"config": config.model_dump(mode="json")}
        )

        def state(name: str) -> bool:
            return client.read_flow_run(run.id).state.name == name

        wait_until(lambda: state("Suspended"), "the suspension")
        wait_until(lambda: not is_alive(last_run(config.store.root)[1]), "the end of the process")
        _, suspended = last_run(config.store.root)
        assert (suspended.state, suspended.tasks[-1].state, suspended.error) == (
            "suspended",
            "suspended",
            None,
        )
        assert nothing_left_the_store(config)
        assert client.resume_flow_run(run.id, run_input=APPROVE).status == SetStateStatus.ACCEPT
        wait_until(lambda: client.read_flow_run(run.id).state.is_final(), "the end")
        assert state("Completed"), client.read_flow_run(run.id).state
    ((_, record),) = read_runs(config.store.root)  # one run, one folder
    assert record.state == "completed"
    assert [step.name for step in record.tasks].count("approve") == 2
    after = launches(config.store.root)
    assert {step: after[step] - before[step] for step in before} == dict.fromkeys(before, 0)
    assert (config.store.root / "handoff").is_dir()


def recipe_of(config: StageConfig, folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
    return path


def without_server() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {
        "PYTHONPATH": python_path()
    }


def test_without_terminal_and_server_it_is_refused_before_anything_runs(gated, tmp_path, monkeypatch):
    config = gated(approval="person")
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    done = pairline("run", str(recipe_of(config, tmp_path)))
    assert done.returncode == ConfigError.exit_code
    assert "needs someone to ask" in done.stderr
    assert not (config.store.root / "runs").exists()


@pytest.mark.parametrize(("answer", "exit_code"), [("approve", 0), ("reject", ApprovalRejected.exit_code)])
def test_at_a_terminal_without_a_server_the_terminal_asks(gated, tmp_path, answer, exit_code):
    config = gated(approval="person", accuracy_at_least=0.0)
    new_prefect_home(config.store.root / "prefect")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.terminal", "run", str(recipe_of(config, tmp_path))],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=without_server() | {"COLUMNS": "150", "TERM": "dumb"},
        cwd=tmp_path,
    )
    os.close(theirs)
    seen = ""
    try:
        for prompt, line in (
            ("approve or reject?", "what"),
            ("approve or reject?", answer),
            ("your name", "Ann"),
            ("why?", "as I like"),
        ):
            seen += read_until(ours, prompt)
            os.write(ours, (line + "\n").encode())
        seen += read_until(ours, None)
        process.wait(PATIENCE_SECONDS)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert process.returncode == exit_code, seen
    assert "held-out accuracy at least" in seen
    folder, _ = last_run(config.store.root)
    assert '"asked_in": "terminal"' in (folder / "approval.json").read_text()
    assert ("Ann rejected the checkpoint: as I like" in seen) == (answer == "reject")
    assert nothing_left_the_store(config) == (answer == "reject")


def read_until(terminal: int, text: str | None) -> str:
    """What the terminal shows up to ``text``, or to its end."""
    seen = b""
    while text is None or text.encode() not in seen:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # the other side has closed
            part = b""
        if not part:
            assert text is None, f"ended before {text!r}: {seen.decode(errors='replace')}"
            break
        seen += part
    return seen.decode(errors="replace")


def test_the_command_line_answers_a_waiting_run_and_no_other(gated, monkeypatch):
    config = gated(approval="person")
    monkeypatch.setenv("PREFECT_API_URL", PREFECT_API_URL.value())
    answers: list[subprocess.CompletedProcess] = []

    with get_client(sync_client=True) as client:
        others = paused_runs(client)

    def approve() -> None:
        with get_client(sync_client=True) as client:
            wait_until(lambda: paused_runs(client) - others, "the question")
        for _ in range(2):
            answers.append(
                pairline("approve", "--reason", "fine", "--name", "Bo", "--store", str(config.store.root))
            )

    thread = threading.Thread(target=approve)
    thread.start()
    try:
        handoff = dpo_stage(config)
    finally:
        thread.join()
    assert (handoff.release.approval.name, handoff.release.approval.reason) == ("Bo", "fine")
    first, second = answers
    assert (first.returncode, second.returncode) == (0, ConfigError.exit_code), first.stderr + second.stderr
    assert first.stdout.strip().endswith(": approve by Bo")
    assert "takes no answer now" in second.stderr
