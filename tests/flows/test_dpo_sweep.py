"""A sweep on a real server: what is shared is done once, one member is released, and no failure or kill loses the others."""

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import httpx
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.settings import PREFECT_API_URL, temporary_settings

from dpo_core.contract.errors import ConfigError, GateFailed, NonFinite, OutOfMemory, StepCrashed
from flows.accelerator import SECONDS_BETWEEN_LOOKS, slot
from flows.dpo_stage import dpo_stage
from flows.dpo_sweep import choose, dpo_sweep
from flows.settings.overrides import validated
from flows.settings.sweep_config import SweepConfig, members_of
from flows.sweep_members import MemberResult
from flows.terminal.cli import EXIT_INTERRUPTED
from flows.terminal.export_command import export_step
from tasks.handoff.schema import RLVRHandoff
from tasks.launch.compute import accelerator_name, this_machine
from tasks.launch.context import Context
from tasks.run.folder import RunRecord, read_runs, recorded_run
from tasks.sweep.outcomes import MemberOutcome, SweepOutcome
from tests.flows.conftest import launches, step_processes, tiny_config
from tests.prefect_database import new_prefect_home
from tests.waiting import PATIENCE_SECONDS, wait_until
from tests.warm.started import python_path

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]
LIMIT = "sweep-tests"


def sweep_config(inputs: Path, store: Path, grid: dict, **sections: dict) -> SweepConfig:
    stage = tiny_config(inputs, store, **{"train": {"max_steps": 4}} | sections)
    values = stage.model_dump(mode="json") | {"name": "grid", "sweep": {"accelerator": LIMIT} | grid}
    return validated(values, "sweep", SweepConfig)


def members_at_once(record: RunRecord) -> int:
    """The most members that were at work at the same time."""
    spans = [
        (step.started.timestamp(), step.started.timestamp() + step.seconds)
        for step in record.tasks
        if step.name.startswith("member")
    ]
    return max(sum(start <= moment < end for start, end in spans) for moment, _ in spans)


def run_of(store: Path, name: str) -> tuple[Path, RunRecord]:
    return [(folder, record) for folder, record in read_runs(store) if record.name == name][-1]


@pytest.fixture(scope="module")
def swept(prefect_server, tiny_inputs, tmp_path_factory) -> tuple[SweepConfig, Path, RLVRHandoff]:
    """Two objectives, one without a reference, at a learning rate that trains and one that blows up; two at once."""
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(LIMIT, 2)
    store = tmp_path_factory.mktemp("swept") / "store"
    config = sweep_config(tiny_inputs, store, {"loss": ["simpo", "dpo_norm"], "learning_rate": [1e-3, 1000]})
    return config, store, dpo_sweep(config)


def test_what_members_share_is_done_once(swept):
    _, store, _ = swept
    counts = launches(store)
    assert {step: counts[step] for step in ("mix", "reference", "train", "export", "evaluate")} == {
        "mix": 1,
        "reference": 1,
        "train": 4,
        "export": 2,
        "evaluate": 2,
    }
    assert [len(list((store / step).glob("*/result.json"))) for step in ("mix", "reference", "train")] == [
        1,
        1,
        2,
    ]


def test_a_member_that_fails_does_not_lose_the_others(swept):
    _, store, _ = swept
    folder, record = run_of(store, "grid")
    outcome = SweepOutcome.model_validate_json((folder / "sweep.json").read_bytes())
    assert [member.error is None for member in outcome.members] == [True, False, True, False]
    assert all(member.error.startswith("non_finite: ") for member in outcome.members if member.error)
    assert record.state == "completed"
    assert [step.state for step in record.tasks if step.name.startswith("member")].count("failed") == 2
    own = {run.name: run for _, run in read_runs(store) if run.name != "grid"}
    assert {name: run.state for name, run in own.items()} == {
        "grid-01": "completed",
        "grid-02": "failed",
        "grid-03": "completed",
        "grid-04": "failed",
    }
    assert own["grid-02"].error_kind == "non_finite"
    assert [step.name for step in own["grid-01"].tasks] == ["train", "evaluate"]


def test_only_the_winner_is_released(swept):
    _, store, handoff = swept
    folder, _ = run_of(store, "grid")
    outcome = SweepOutcome.model_validate_json((folder / "sweep.json").read_bytes())
    scores = {
        member.number: member.after["rewards/accuracies"] for member in outcome.members if not member.error
    }
    assert scores[outcome.winner] == max(scores.values())
    winner = run_of(store, f"grid-{outcome.winner:02d}")[1]
    assert handoff.weights_fingerprint in Path(winner.outputs["export"], "result.json").read_text()
    assert handoff.name == "grid"
    assert len(list((store / "handoff").glob("*/handoff.json"))) == 1
    assert len(list((store / "published").rglob("model.safetensors"))) == 1
    exported, _ = export_step(str(folder), "", store)  # what came out of a sweep is its winner's
    weights = exported / "model.safetensors"
    assert weights.read_bytes() == (Path(handoff.checkpoint.directory) / weights.name).read_bytes()


def test_one_table_and_one_picture_tell_all(swept):
    _, store, _ = swept
    folder, record = run_of(store, "grid")
    assert (folder / "sweep.png").stat().st_size > 5_000
    only = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(record.flow_run_id)]))
    with get_client(sync_client=True) as client:
        artifacts = {artifact.key: artifact for artifact in client.read_artifacts(artifact_filter=only)}
    (table,) = [artifact for key, artifact in artifacts.items() if key.endswith("sweep")]
    (picture,) = [artifact for key, artifact in artifacts.items() if key.endswith("sweep-picture")]
    for part in ('"outcome": "winner"', "failed: non_finite", "rewards/accuracies", '"loss": "simpo"'):
        assert part in table.data
    assert "data:image/png;base64," in picture.data


def test_as_many_train_at_once_as_the_accelerator_has_slots(swept, tiny_inputs, tmp_path):
    _, store, _ = swept
    assert members_at_once(run_of(store, "grid")[1]) == 2
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name("one-slot", 1)
    again = shutil.copytree(store, tmp_path / "store", symlinks=True)
    shutil.rmtree(again / "runs")
    config = sweep_config(
        tiny_inputs,
        again,
        {"loss": ["simpo", "dpo_norm"], "learning_rate": [1e-3], "accelerator": "one-slot"},
    )
    before = launches(again)
    dpo_sweep(config)
    assert launches(again) == before  # all of it was there
    assert members_at_once(run_of(again, "grid")[1]) == 1


def test_a_sweep_without_a_member_that_passes_the_gate_releases_nothing(swept, tiny_inputs, tmp_path):
    again = shutil.copytree(swept[1], tmp_path / "store", symlinks=True)
    for place in ("runs", "published", "handoff"):
        shutil.rmtree(again / place)
    config = sweep_config(
        tiny_inputs, again, {"loss": ["simpo", "dpo_norm"]}, gate={"length_ratio_at_most": 1e-9}
    )
    with pytest.raises(
        GateFailed, match=r"loss simpo: gate: mean length .*; loss dpo_norm: gate: mean length"
    ):
        dpo_sweep(config)
    _, record = run_of(again, "grid")
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(UUID(record.flow_run_id)).state.name == "GateFailed"
    assert not (again / "published").exists()
    assert not (again / "handoff").exists()


def test_a_limit_that_is_not_there_is_told_with_the_command_that_makes_it(tiny_inputs, tmp_path):
    config = sweep_config(tiny_inputs, tmp_path / "store", {"beta": [1.0], "accelerator": "no-such-limit"})
    with pytest.raises(ConfigError, match="prefect gcl create no-such-limit --limit 1"):
        dpo_sweep(config)
    assert not (tmp_path / "store").exists()


def test_where_all_members_fail_the_first_error_is_the_sweeps(tiny_inputs, tmp_path):
    config = sweep_config(tiny_inputs, tmp_path / "store", {"beta": [1.0, 2.0]})
    failed = [
        MemberResult(
            member,
            MemberOutcome(
                number=member.number,
                label=member.label,
                settings=member.settings,
                run="",
                error="oom: too large",
            ),
            error=OutOfMemory(f"too large: {member.label}"),
        )
        for member in members_of(config)
    ]
    with (
        recorded_run(tmp_path / "store", "grid", config) as run,
        pytest.raises(OutOfMemory, match="too large: beta 1"),
    ):
        choose(failed, config, run)


def test_where_a_member_was_interrupted_no_winner_is_chosen(tiny_inputs, tmp_path):
    config = sweep_config(tiny_inputs, tmp_path / "store", {"beta": [1.0, 2.0, 3.0]})
    outcomes = [
        MemberOutcome(
            number=member.number,
            label=member.label,
            settings=member.settings,
            run="",
            after={"rewards/accuracies": 0.9},
        )
        for member in members_of(config)
    ]
    errors = [None, NonFinite("the loss is nan"), StepCrashed("killed by signal 9")]
    results = [
        MemberResult(member, outcome, error=error)
        for member, outcome, error in zip(members_of(config), outcomes, errors, strict=True)
    ]
    assert [result.interrupted for result in results] == [False, False, True]
    results[2] = replace(
        results[2], outcome=outcomes[2].model_copy(update={"error": "crashed", "interrupted": True})
    )
    with (
        recorded_run(tmp_path / "store", "grid", config) as run,
        pytest.raises(
            StepCrashed, match=r"1 of 3 members .* beta 3\. Start the sweep again.*killed by signal 9"
        ),
    ):
        choose(results, config, run)
    folder, _ = run_of(tmp_path / "store", "grid")
    assert SweepOutcome.model_validate_json((folder / "sweep.json").read_bytes()).winner is None


def test_a_member_logs_into_its_own_run_and_the_sweeps(swept):
    """Members are at work in one process at the same time."""
    _, store, _ = swept
    logs = {
        name: (run_of(store, name)[0] / "run.log").read_text()
        for name in ("grid", "grid-01", "grid-02", "grid-03")
    }
    exported = {name: Path(run_of(store, name)[1].outputs["export"]).name for name in ("grid-01", "grid-03")}
    assert {name: exported["grid-01"] in log for name, log in logs.items()} == {
        "grid": True,
        "grid-01": True,
        "grid-02": False,
        "grid-03": False,
    }
    assert {name: "NonFinite" in log for name, log in logs.items()} == {
        "grid": True,
        "grid-01": False,
        "grid-02": True,
        "grid-03": False,
    }


def test_a_stage_waits_for_the_slot_that_a_member_of_a_sweep_holds(swept, tiny_inputs, tmp_path):
    """On a server with the limit; no other test here has it."""
    again = shutil.copytree(swept[1], tmp_path / "store", symlinks=True)
    config = tiny_config(tiny_inputs, again, train={"max_steps": 4}, loss={"name": "simpo"})
    name = accelerator_name(this_machine())
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(name, 1)
        try:
            with ThreadPoolExecutor(1) as pool:
                with slot(name, Context()):
                    ended = pool.submit(copy_context().run, dpo_stage, config)
                    waited = time.monotonic() + SECONDS_BETWEEN_LOOKS + 5
                    while time.monotonic() < waited or len(steps_of(again, "tiny")) < 2:
                        time.sleep(0.2)
                        assert not ended.done(), ended.result()
                    assert steps_of(again, "tiny") == ["fetch checkpoint", "mix data"]
                assert ended.result(timeout=PATIENCE_SECONDS).name == "tiny"
            assert steps_of(again, "tiny")[2:4] == ["train", "evaluate"]
            assert client.read_global_concurrency_limit_by_name(name).active_slots == 0
        finally:
            client.delete_global_concurrency_limit_by_name(name)


def test_a_slot_that_cannot_be_given_back_ends_nobody(caplog):
    """The server is away when the training is over."""
    with get_client(sync_client=True) as client:
        for name in ("given-back", "not-given-back"):
            client.upsert_global_concurrency_limit_by_name(name, 1)
    with ExitStack() as away, slot("not-given-back", Context()):
        away.enter_context(temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}))
    assert "The slot of the limit not-given-back could not be given back" in caplog.text
    with pytest.raises(httpx.ConnectError, match="of who holds it"), slot("given-back", Context()):
        raise httpx.ConnectError("of who holds it")


def steps_of(store: Path, name: str) -> list[str]:
    """The steps that a run has begun."""
    return [step.name for _, record in read_runs(store) if record.name == name for step in record.tasks]


class CommandLine:
    """`pairline sweep` in a process of its own with a temporary server, as someone at a laptop starts it."""

    def __init__(self, config: SweepConfig, folder: Path) -> None:
        self.recipe, self.folder, self.starts = folder / "sweep.yaml", folder, 0
        self.recipe.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))

    def start(self) -> subprocess.Popen:
        self.starts += 1
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        with (self.folder / f"output-{self.starts}").open("w") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "flows.terminal", "sweep", str(self.recipe)],
                env=environment | {"PYTHONPATH": python_path()},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def output(self) -> str:
        return (self.folder / f"output-{self.starts}").read_text()


@pytest.mark.timeout(1500)
def test_interrupted_and_killed_it_goes_on_where_it_was(tiny_inputs, tmp_path):
    """Ctrl-C while the second member trains, then SIGKILL, then to the end. The first member is trained once."""
    store = tmp_path / "store"
    config = sweep_config(
        tiny_inputs,
        store,
        {"beta": [1.0, 5.0], "accelerator": None},
        train={"num_epochs": 4, "max_steps": None, "checkpoint_every": 1},
    )
    line = CommandLine(config, tmp_path)
    new_prefect_home(store / "prefect")

    def second_trains() -> bool:
        going_on = [
            folder for folder in (store / "train").glob("[!.]*") if not (folder / "result.json").exists()
        ]
        return len(list((store / "train").glob("[!.]*"))) == 2 and any(
            any(folder.glob("checkpoints/[!.]*")) for folder in going_on
        )

    process = line.start()
    wait_until(second_trains, "the second member", line.output, of=process)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_SECONDS) == EXIT_INTERRUPTED, line.output()
    assert step_processes(store) == []
    assert run_of(store, "grid")[1].state == run_of(store, "grid-02")[1].state == "cancelled"

    process = line.start()
    wait_until(lambda: step_processes(store / "train"), "the second member again", line.output, of=process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    process = line.start()  # the slot that the killed one held is free
    assert process.wait(PATIENCE_SECONDS) == 0, line.output()
    assert line.output().splitlines()[-1].startswith("handoff: ")
    assert "winner" in line.output()
    first, second = (Path(run_of(store, f"grid-{number:02d}")[1].outputs["train"]) for number in (1, 2))
    starts = {
        folder: (folder / "log.txt").read_text().count("accelerate.commands.launch")
        for folder in (first, second)
    }
    assert starts == {first: 1, second: 3}
    assert [launches(store)[step] for step in ("mix", "reference")] == [1, 1]
