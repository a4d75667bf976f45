"""The flow on a real Prefect server with real child processes: the whole chain, its reuse, and its life after kills."""

import contextlib
import os
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL

import flows.stage_parts
from dpo_core.contract.errors import DataError, HandoffRefused
from dpo_core.contract.jobs import TrainResult
from dpo_core.contract.progress import ProgressEvent
from dpo_core.contract.results import RESULT_FILE
from flows.audience import Audience, followed
from flows.dpo_stage import dpo_stage, run_stage
from flows.settings.stage_config import StageConfig
from tasks.handoff.schema import RLVRHandoff, read_handoff
from tasks.report.page import REPORT_FILE
from tasks.run.folder import read_runs
from tests.flows.conftest import last_run, launches, pairline, step_processes, tiny_config
from tests.tracker_files import tensorboard_steps

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]
STEPS = ["fetch checkpoint", "mix data", "cache reference", "train", "evaluate", "upload", "hand off"]
ARTIFACTS = {
    f"tiny-{what}"
    for what in (
        "checkpoint",
        "mixture",
        "reference",
        "training-curves",
        "training-metrics",
        "trackers",
        "evaluation",
        "samples",
        "upload",
        "handoff",
        "report",
    )
}


def train_result(store: Path) -> TrainResult:
    (path,) = (store / "train").glob(f"*/{RESULT_FILE}")
    return TrainResult.model_validate_json(path.read_bytes())


@pytest.fixture(scope="module")
def finished(prefect_server, tiny_inputs, tmp_path_factory) -> tuple[StageConfig, Path, RLVRHandoff]:
    """A whole run: 100 steps with a checkpoint after each, so that it can be killed in the middle elsewhere."""
    store = tmp_path_factory.mktemp("finished") / "store"
    config = tiny_config(
        tiny_inputs,
        store,
        train={"num_epochs": 4, "checkpoint_every": 1},
        tracking={"trackers": ["tensorboard"], "project": "tiny"},
    )
    return config, store, dpo_stage(config)


def test_the_stage_goes_from_checkpoint_to_handoff(finished):
    _, store, handoff = finished
    folder, record = last_run(store)
    assert [(step.name, step.state) for step in record.tasks] == [(name, "completed") for name in STEPS]
    assert record.state == "completed"
    assert read_handoff(Path(record.outputs["handoff"])) == handoff
    assert (folder / REPORT_FILE).read_text().count("<h2>") == 8
    assert handoff.metrics_before["rewards/accuracies"] == 0.5
    assert handoff.metrics_after["loss"] < handoff.metrics_before["loss"]
    assert train_result(store).steps == 100


def test_an_adapter_goes_through_the_whole_stage(tiny_inputs, tmp_path):
    store = tmp_path / "store"
    adapter = {
        "kind": "lora",
        "rank": 4,
        "alpha": 8,
        "target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"],
    }
    handoff = dpo_stage(tiny_config(tiny_inputs, store, adapter=adapter, optim={"learning_rate": 1e-2}))
    trained, published = train_result(store), handoff.checkpoint.directory
    num_trained = 4 * 2 * (32 + 32 + 32 + 16 + 2 * (32 + 64))  # two blocks: q, v, up, down
    assert trained.trained_parameters == num_trained
    assert trained.base_check["largest_difference_per_token"] < 1e-5
    assert handoff.metrics_before["rewards/accuracies"] == 0.5
    assert handoff.metrics_after["loss"] < handoff.metrics_before["loss"]
    assert {"model.safetensors", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"} < set(
        handoff.checkpoint.files
    )
    card = (published / "README.md").read_text()
    for line in (
        "| adapter rank | 4 |",
        "| adapter alpha | 8 |",
        f"| trained parameters | {num_trained:,} of ",
    ):
        assert line in card
    report = re.sub(r"<[^>]+>", "|", (last_run(store)[0] / REPORT_FILE).read_text())
    for line in ("|adapter: rank||||4|", "|adapter: alpha||||8|", f"|trained parameters||||{num_trained:,}|"):
        assert line in report


def test_the_receiving_side_accepts_it_and_refuses_a_damaged_one(finished, tmp_path):
    _, store, handoff = finished
    path = last_run(store)[1].outputs["handoff"]
    intake = ("intake", path, "--store", str(tmp_path / "rlvr"))
    accepted = pairline(*intake, PREFECT_API_URL=PREFECT_API_URL.value())
    assert accepted.returncode == 0, accepted.stderr
    assert accepted.stdout.splitlines()[-1] == f"accepted: {handoff.checkpoint.uri}"
    assert accepted.stdout.count("ok    ") == len(handoff.rules)
    weights = handoff.checkpoint.directory / "model.safetensors"
    content = weights.read_bytes()
    try:
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        refused = pairline(*intake, PREFECT_API_URL=PREFECT_API_URL.value())
    finally:
        weights.write_bytes(content)
    assert refused.returncode == HandoffRefused.exit_code
    assert "model.safetensors" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_every_step_leaves_its_artifacts(finished):
    with get_client(sync_client=True) as client:
        assert {artifact.key for artifact in client.read_artifacts()} >= ARTIFACTS


def test_a_second_run_starts_no_step(finished):
    config, store, handoff = finished
    before = launches(store)
    assert dpo_stage(config) == handoff
    assert launches(store) == before
    assert set(before) >= {"mix", "reference", "train", "export", "evaluate"}
    assert set(before.values()) == {1}


def test_another_beta_shares_everything_before_the_training(finished, tmp_path):
    config, store, _ = finished
    shared = shutil.copytree(store, tmp_path / "store")
    values = {
        "loss": config.loss.model_copy(update={"beta": 2.0}),
        "train": config.train.model_copy(update={"max_steps": 2}),
        "store": config.store.model_copy(update={"root": shared}),
    }
    dpo_stage(config.model_copy(update=values))
    after = launches(shared)
    assert [len(list((shared / step).glob("[!.]*"))) for step in ("mix", "reference")] == [1, 1]
    assert (after["mix"], after["reference"]) == (1, 1)
    assert len(list((shared / "train").glob(f"*/{RESULT_FILE}"))) == 2


def test_two_runs_of_one_recipe_at_once_share_the_work(tiny_inputs, tmp_path):
    config = tiny_config(tiny_inputs, tmp_path / "store", train={"max_steps": 4})
    with ThreadPoolExecutor() as pool:
        first, second = (pool.submit(dpo_stage, config) for _ in range(2))
        assert first.result() == second.result()
    assert set(launches(tmp_path / "store").values()) == {1}
    assert [record.state for _, record in read_runs(tmp_path / "store")] == ["completed", "completed"]


class KillTrainer:
    """Kills the training program (not its launcher) with SIGKILL in each of its first ``times`` lives, once there is a
    checkpoint to go on from."""

    def __init__(self, store: Path, times: int) -> None:
        self.store, self.times, self.killed = store, times, []

    def __call__(self, event: ProgressEvent) -> None:
        saved = any((self.store / "train").glob("*/checkpoints/[!.]*"))
        if event.step == "train" and 1 < event.done < event.total and saved and len(self.killed) < self.times:
            for pid in step_processes(self.store / "train"):
                if pid not in self.killed:
                    with contextlib.suppress(ProcessLookupError):  # it has just ended
                        os.kill(pid, signal.SIGKILL)
                        self.killed.append(pid)


def test_a_trainer_killed_twice_ends_with_the_same_bits(finished, tmp_path, monkeypatch):
    config, store, _ = finished
    again = shutil.copytree(store, tmp_path / "store")
    for step in ("train", "export", "evaluate", "published", "handoff"):
        shutil.rmtree(again / step)
    at_once = flows.stage_parts.train_dpo.with_options(retry_delay_seconds=[0] * 6)
    monkeypatch.setattr(flows.stage_parts, "train_dpo", at_once)
    kill = KillTrainer(again.resolve(), times=2)
    followed("dpo-stage", run_stage, Audience(on_progress=kill))(
        config.model_copy(update={"store": config.store.model_copy(update={"root": again})})
    )
    assert len(kill.killed) == 2
    assert launches(again)["train"] == 3
    result = train_result(again)
    assert result.resumed_from_step is not None
    assert result.weights_sha256 == train_result(store).weights_sha256
    assert [step for step, _ in tensorboard_steps(result.metrics_path.parent)["loss"]] == list(range(1, 101))


def test_bad_data_fails_once_and_trains_nothing(tiny_inputs, tmp_path):
    (tmp_path / "cut.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejec')
    config = tiny_config(
        tiny_inputs, tmp_path / "store", data={"sources": [{"source": str(tmp_path / "cut.jsonl")}]}
    )
    with pytest.raises(DataError, match=r"cut\.jsonl"):
        dpo_stage(config)
    assert launches(tmp_path / "store") == {"rehearse": 1, "mix": 1}
    folder, record = last_run(tmp_path / "store")
    assert record.state == "failed"
    assert "cut.jsonl" in record.error
    assert "Failed in: mix data" in (folder / REPORT_FILE).read_text()
    assert [step.state for step in record.tasks] == ["completed", "failed"]
