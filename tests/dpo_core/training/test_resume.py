"""A run that is killed, asked to stop, or finds damaged checkpoints ends with the bits of one that was left alone."""

import logging
import signal
import time
from pathlib import Path

import pytest
import torch

from dpo_core.contract.config import OptimConfig
from dpo_core.contract.jobs import TrainJob, TrainResult
from dpo_core.contract.results import read_error, read_result
from dpo_core.contract.store import sha256_file
from dpo_core.engine.checkpoint import RunState, newest_checkpoint
from dpo_core.engine.checkpoint_writer import save_checkpoint
from dpo_core.engine.distributed import start_accelerator
from dpo_core.engine.plain import PlainEngine
from dpo_core.model.forward import PairScorer
from dpo_core.model.load import load_model
from tests.programs.held_files import HELD_AT
from tests.programs.slow_steps import HELD
from tests.step_process import kill_when, metrics_of, signal_when, start
from tests.tiny_stage import run_here

SAVED_AND_GONE_SECONDS = 80  # one on an idle machine; all other steps take 87
IS_HELD = "/checkpoints/step-:20"  # in its 40th step at the latest
TIMINGS = (
    "pairs_per_second",
    "tokens_per_second",
    "tokens_per_second_per_device",
    "tflops_per_device",
    "step_seconds",
    "seconds/data",
    "seconds/exchange",
    "seconds/checkpoint",
    "memory/peak_gib",
    "memory/reserved_gib",
)


def job_in(stage, folder: Path) -> TrainJob:
    """90 steps, a checkpoint after every second one."""
    return stage.train_job(folder, "dpo", num_epochs=10, checkpoint_every=2, learning_rate=1e-4)


@pytest.fixture(scope="module")
def uninterrupted(stage, tmp_path_factory) -> TrainResult:
    return run_here(job_in(stage, tmp_path_factory.mktemp("whole") / "run"))


def untimed(metrics: dict) -> dict:
    return {
        name: value
        for name, value in metrics.items()
        if name not in TIMINGS and not name.startswith("checks/")
    }


def assert_same_run(result: TrainResult, expected: TrainResult) -> None:
    assert sha256_file(result.weights_path / "model.safetensors") == sha256_file(
        expected.weights_path / "model.safetensors"
    )
    assert result.weights_fingerprint == expected.weights_fingerprint
    ours, theirs = (
        [untimed(step) for step in metrics_of(run.metrics_path.parent)] for run in (result, expected)
    )
    assert ours == theirs
    assert [step["step"] for step in ours] == list(range(1, result.steps + 1))
    assert untimed(result.first_metrics) == untimed(expected.first_metrics)
    assert untimed(result.last_metrics) == untimed(expected.last_metrics)
    assert (result.guard, result.pairs) == (expected.guard, expected.pairs)


def checkpoints(job: TrainJob) -> list[str]:
    return [folder.name for folder in sorted((job.out_dir / "checkpoints").glob("step-*"))]


@pytest.mark.integration
def test_killed_with_checkpoints_by_the_clock_alone_gives_the_same_bits(
    stage, tmp_path, uninterrupted, monkeypatch
):
    monkeypatch.setenv(HELD_AT, IS_HELD)
    job = stage.train_job(
        tmp_path,
        "dpo",
        num_epochs=10,
        checkpoint_every=1000,
        checkpoint_every_minutes=1e-9,
        learning_rate=1e-4,
    )
    assert (
        job.fingerprint == job_in(stage, tmp_path).fingerprint
    )  # when checkpoints are written changes nothing
    kill_when(start(job, module="tests.programs.held_files"), lambda: len(metrics_of(tmp_path)) >= 7)
    assert newest_checkpoint(tmp_path / "checkpoints", job.fingerprint)[1].step >= 5
    result = run_here(job)
    assert result.resumed_from_step >= 5
    assert_same_run(result, uninterrupted)


def test_without_a_clock_checkpoints_come_by_steps_alone(stage, tmp_path):
    job = stage.train_job(tmp_path, checkpoint_every=1000, checkpoint_every_minutes=None)
    run_here(job)
    assert checkpoints(job) == []


@pytest.mark.integration
def test_killed_twice_and_resumed_gives_the_same_bits(stage, tmp_path, uninterrupted, monkeypatch):
    monkeypatch.setenv(HELD_AT, IS_HELD)
    job = job_in(stage, tmp_path)
    kill_when(start(job, module="tests.programs.held_files"), lambda: len(metrics_of(tmp_path)) >= 7)
    first = newest_checkpoint(tmp_path / "checkpoints", job.fingerprint)[1].step
    assert first >= 6
    kill_when(start(job, module="tests.programs.held_files"), lambda: len(metrics_of(tmp_path)) >= first + 20)
    second = newest_checkpoint(tmp_path / "checkpoints", job.fingerprint)[1].step
    assert first < second < 90
    assert read_result(job) is None
    result = run_here(job)
    assert result.resumed_from_step == second
    assert_same_run(result, uninterrupted)


@pytest.mark.integration
def test_asked_to_stop_it_writes_a_checkpoint_and_says_so(stage, tmp_path, uninterrupted):
    job = job_in(stage, tmp_path).model_copy(
        update={"train": job_in(stage, tmp_path).train.model_copy(update={"checkpoint_every": "epoch"})}
    )
    assert job.fingerprint == uninterrupted.job_fingerprint
    seen, asked = 0, 0.0

    def is_in_its_third_step() -> bool:
        nonlocal seen, asked
        seen, asked = len(metrics_of(tmp_path)), time.monotonic()
        return (tmp_path / HELD).exists()

    step = start(job, module="tests.programs.slow_steps")
    assert signal_when(step, signal.SIGTERM, is_in_its_third_step) == 20
    assert seen >= 2
    seconds = time.monotonic() - asked
    done, step_seconds = len(metrics_of(tmp_path)), metrics_of(tmp_path)[-1]["step_seconds"]
    assert step_seconds >= 1
    assert seen <= done <= seen + 1, "only the step at hand is finished"
    assert seconds < step_seconds + SAVED_AND_GONE_SECONDS
    error = read_error(job)
    assert (error.kind, error.step) == ("preempted", "train")
    assert f"a checkpoint of step {done} is written" in error.message
    assert checkpoints(job)[-1] == f"step-{done:08d}"
    assert read_result(job) is None
    result = run_here(job)
    assert result.resumed_from_step == done
    assert read_error(job) is None
    assert_same_run(result, uninterrupted)


def test_only_the_newest_checkpoints_are_kept_and_the_last_step_needs_none(stage, tmp_path):
    job = stage.train_job(tmp_path, checkpoint_every=2, keep_checkpoints=3)  # 9 steps: after 2, 4, 6, 8
    run_here(job)
    assert checkpoints(job) == ["step-00000004", "step-00000006", "step-00000008"]


def test_what_a_kill_in_the_middle_of_a_write_left_is_removed(stage, tmp_path):
    job = stage.train_job(tmp_path, checkpoint_every=4)
    left = tmp_path / "checkpoints" / ".step-00000004.k1ll3d.aside"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    run_here(job)
    assert [folder.name for folder in sorted(left.parent.iterdir())] == ["step-00000004", "step-00000008"]


def test_an_epoch_ends_with_a_checkpoint(stage, tmp_path):
    job = stage.train_job(tmp_path, num_epochs=3, checkpoint_every="epoch")
    run_here(job)
    assert checkpoints(job) == ["step-00000009", "step-00000018"]


@pytest.mark.parametrize(
    "damage",
    ["flipped byte", "missing file", "no manifest", "torn manifest", "empty manifest", "list for a manifest"],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(stage, tmp_path, caplog, damage):
    job = stage.train_job(tmp_path, checkpoint_every=2, keep_checkpoints=2)
    whole = run_here(job)
    newest = tmp_path / "checkpoints" / "step-00000008"
    if damage == "flipped byte":
        content = bytearray((newest / "optimizer.safetensors").read_bytes())
        content[-1] ^= 1
        (newest / "optimizer.safetensors").write_bytes(content)
    elif damage == "missing file":
        (newest / "model.safetensors").unlink()
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        text = {"torn": '{"model.saf', "empty": "{}", "list": "[]"}[damage.split()[0]]
        (newest / "manifest.json").write_text(text)
    again = run_here(job)
    assert "checkpoint step-00000008 is damaged and not used" in caplog.text
    assert again.resumed_from_step == 6
    assert again.weights_fingerprint == whole.weights_fingerprint


def test_a_run_from_the_start_follows_where_no_checkpoint_is_usable(stage, tmp_path, caplog):
    job = stage.train_job(tmp_path, checkpoint_every=4, keep_checkpoints=1)
    whole = run_here(job)
    (tmp_path / "checkpoints" / "step-00000008" / "state.json").write_text("{}")
    again = run_here(job)
    assert again.resumed_from_step is None
    assert again.weights_fingerprint == whole.weights_fingerprint
    assert again.guard == whole.guard
    assert len(metrics_of(tmp_path)) == 9


def test_a_torn_line_of_metrics_is_forgotten_with_the_steps_that_run_again(stage, tmp_path):
    job = stage.train_job(tmp_path, checkpoint_every=4)
    whole = run_here(job)
    expected = [untimed(step) for step in metrics_of(tmp_path)]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "lo')  # what a kill in the middle of a write leaves
    assert run_here(job).weights_fingerprint == whole.weights_fingerprint
    assert [untimed(step) for step in metrics_of(tmp_path)] == expected


def new_engine(stage) -> PlainEngine:
    return PlainEngine.start(
        start_accelerator(),
        PairScorer(load_model(stage.checkpoint), "fp32"),
        OptimConfig(learning_rate=0.01, weight_decay=0.1),
    )


@pytest.fixture
def engine(stage) -> PlainEngine:
    """An engine after one optimizer step, so that every moment is there."""
    engine = new_engine(stage)
    engine.scorer.model(torch.arange(6)[None]).logits.pow(2).sum().backward()
    engine.step(learning_rate=0.01)
    return engine


def test_weights_and_moments_come_back_exactly(stage, tmp_path, engine):
    folder = save_checkpoint(tmp_path, engine, RunState(step=1, job_fingerprint="job"), keep=1)
    other = new_engine(stage)
    other.load(folder)
    for ours, theirs in zip(engine.scorer.parameters(), other.scorer.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        ours_state, their_state = engine.optimizer.state[ours], other.optimizer.state[theirs]
        assert ours_state.keys() == their_state.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(ours_state[key], their_state[key]) for key in ours_state)
        assert all(ours_state[key].dtype == their_state[key].dtype for key in ours_state)


def test_checkpoints_of_another_job_are_not_used(tmp_path, engine, caplog):
    for step, job in ((1, "mine"), (2, "another")):
        save_checkpoint(tmp_path, engine, RunState(step=step, job_fingerprint=job), keep=5)
    with caplog.at_level(logging.WARNING):
        folder, state = newest_checkpoint(tmp_path, "mine")
    assert (folder.name, state.step) == ("step-00000001", 1)
    assert "step-00000002 belongs to another job" in caplog.text
    assert newest_checkpoint(tmp_path, "third") is None
    assert newest_checkpoint(tmp_path / "nowhere", "mine") is None


def test_an_unusable_later_checkpoint_does_not_push_out_the_good_one(tmp_path, engine):
    state = RunState(step=8, job_fingerprint="job")
    damaged = save_checkpoint(tmp_path, engine, state, keep=1)
    (damaged / "manifest.json").unlink()
    save_checkpoint(tmp_path, engine, state.model_copy(update={"step": 5}), keep=1)
    assert newest_checkpoint(tmp_path, "job")[1].step == 5
    assert [folder.name for folder in tmp_path.glob("step-*")] == ["step-00000005"]


def test_metrics_that_a_power_failure_tore_are_written_again(stage, tmp_path):
    job = stage.train_job(tmp_path, checkpoint_every=4, keep_checkpoints=1)
    run_here(job)
    whole, file = metrics_of(tmp_path), tmp_path / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:8]) + b"\0" * 40 + b"\n" + lines[8][5:])
    assert run_here(job).resumed_from_step == 8
    assert [step["loss"] for step in metrics_of(tmp_path)] == [step["loss"] for step in whole]
