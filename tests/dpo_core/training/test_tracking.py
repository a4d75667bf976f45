"""Trackers see every step once, also of a run that was killed, and can neither fail a training nor change it."""

import sys
from pathlib import Path

import pytest
from accelerate.tracking import TensorBoardTracker

from dpo_core.contract import tracking_config
from dpo_core.contract.errors import ConfigError
from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.metric_names import OF_A_SOURCE, of_source
from dpo_core.contract.results import read_error, read_result
from dpo_core.contract.tracking_config import IN_THE_EXTRA, TRACKING_DIR, TrackingConfig, check_trackers
from tests.dpo_core.training.test_pair_numbers import stage_of
from tests.dpo_core.training.test_resume import assert_same_run
from tests.killed_run import count_touches, run_until
from tests.step_process import evaluations_in, metrics_of, run_child, run_ranks
from tests.tiny_stage import TinyStage, make_rows, run_here
from tests.tracker_files import (
    history,
    mlflow_steps,
    mlflow_words,
    tensorboard_steps,
    trackio_steps,
    trackio_words,
    wandb_words,
)

ALL = TrackingConfig(
    trackers=IN_THE_EXTRA, project="tiny", run_name="a run", group="runs", tags=("one", "two"), notes="A try."
)


def tracked_job(stage: TinyStage, folder: Path, tracking: TrackingConfig = ALL, **more) -> TrainJob:
    job = stage.train_job(folder, "dpo", max_steps=6, checkpoint_every=2, tracking=tracking, **more)
    job.write()
    return job


def assert_tracked_once(folder: Path, trackers: tuple[str, ...] = ALL.trackers, steps: int = 6) -> None:
    """Every tracker holds what ``metrics.jsonl`` holds: every step, in order, once."""
    recorded = metrics_of(folder)
    assert [step["step"] for step in recorded] == list(range(1, steps + 1))
    shown = tensorboard_steps(folder)
    for name in ("loss", "rewards/accuracies", "grad_norm", "learning_rate"):
        assert [step for step, _ in shown[name]] == list(range(1, steps + 1)), name
        assert [value for _, value in shown[name]] == pytest.approx(
            [step[name] for step in recorded], rel=1e-6
        )
    if "mlflow" in trackers:
        kept = mlflow_steps(folder)
        assert {name: [value for _, value in kept[name]] for name in ("loss", "rewards/accuracies")} == {
            name: [step[name] for step in recorded] for name in ("loss", "rewards/accuracies")
        }
        assert [step for step, _ in kept["loss"]] == list(range(1, steps + 1))
        assert [(each["step"], each["loss"]) for each in trackio_steps(folder)] == [
            (step["step"], step["loss"]) for step in recorded
        ]
    sent = history(folder / TRACKING_DIR)
    assert [step["step"] for step in sent] == list(range(1, steps + 1))
    assert [step["loss"] for step in sent] == [step["loss"] for step in recorded]


@pytest.mark.integration
def test_every_source_has_its_curves_in_all_trackers_whatever_it_is_called(tmp_path):
    """MLflow refuses both signs, and what stands for them is the same."""
    odd, other = "a<b.jsonl", "a>b.jsonl"
    rows = make_rows(30)
    stage = stage_of(tmp_path / "stage", {odd: rows[:18], other: rows[18:]}, {}, "4")
    job = tracked_job(stage, tmp_path / "run")
    assert run_until(job, None) == 0
    assert_tracked_once(job.out_dir)
    steps = metrics_of(job.out_dir)
    shown, kept = tensorboard_steps(job.out_dir), mlflow_steps(job.out_dir)
    others = trackio_steps(job.out_dir), history(job.out_dir / TRACKING_DIR)
    for source, behind in ((odd, ""), (other, "_2")):
        for metric in OF_A_SOURCE:
            name = of_source(source, metric)
            curve = [(step["step"], step[name]) for step in steps if name in step]
            assert len(curve) > 2
            assert shown[name] == [(step, pytest.approx(value, rel=1e-6)) for step, value in curve]
            assert kept[of_source("a_b.jsonl", metric) + behind] == curve
            assert [[(step["step"], step[name]) for step in of if name in step] for of in others] == [
                curve,
                curve,
            ]


@pytest.mark.integration
def test_trackers_get_every_step_and_change_nothing(stage, tmp_path):
    job = tracked_job(stage, tmp_path / "tracked")
    plain = tracked_job(stage, tmp_path / "plain", TrackingConfig())
    assert job.fingerprint == plain.fingerprint
    assert [run_until(job, None), run_until(plain, None)] == [0, 0]
    assert_tracked_once(job.out_dir)
    words = {"name": "a run", "group": "runs", "tags": ["one", "two"], "notes": "A try."}
    assert mlflow_words(job.out_dir) == words
    assert trackio_words(job.out_dir) == words
    assert wandb_words(job.out_dir / TRACKING_DIR) == words
    assert_same_run(read_result(job), read_result(plain))
    assert not (plain.out_dir / TRACKING_DIR).exists()
    assert {path.name for path in job.out_dir.iterdir()} - {
        path.name for path in plain.out_dir.iterdir()
    } == {TRACKING_DIR}


@pytest.mark.integration
@pytest.mark.parametrize("moment", [0.35, 0.6, 0.85])
def test_a_killed_and_resumed_run_is_tracked_once(stage, tmp_path, moment):
    touches = count_touches(tracked_job(stage, tmp_path / "alone", TrackingConfig()))
    job = tracked_job(stage, tmp_path / "killed")
    assert run_until(job, int(moment * touches)) == -9
    assert run_until(job, None) == 0
    assert_tracked_once(job.out_dir)


@pytest.mark.integration
def test_only_the_main_process_tracks(stage, tmp_path):
    job = tracked_job(stage, tmp_path / "two", processes=2)
    run_ranks(job)
    assert len(list((job.out_dir / TRACKING_DIR / "tiny").glob("events.*"))) == 1
    assert_tracked_once(job.out_dir)


def test_a_tracker_that_fails_is_left_out_and_the_training_goes_on(stage, tmp_path, monkeypatch, caplog):
    log = TensorBoardTracker.log

    def failing(self, values, step=None, **more):
        if step == 3:
            raise OSError("no space left for events")
        return log(self, values, step=step, **more)

    monkeypatch.setattr(TensorBoardTracker, "log", failing)
    job = tracked_job(stage, tmp_path / "run", TrackingConfig(trackers=("tensorboard",), project="tiny"))
    assert run_here(job).steps == 6
    assert len(metrics_of(job.out_dir)) == 6
    assert [step for step, _ in tensorboard_steps(job.out_dir)["loss"]] == [1, 2]
    assert "no space left for events" in caplog.text


def test_tensorboard_alone_needs_no_wandb_and_has_what_is_measured_while_training(
    stage, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    alone = TrackingConfig(trackers=("tensorboard",), project="tiny")
    job = tracked_job(stage, tmp_path / "tracked", alone, evaluation=EvaluationConfig(every=4))
    run_here(job)
    shown = tensorboard_steps(job.out_dir)
    assert [step for step, _ in shown["loss"]] == list(range(1, 7))
    measured = [(one["step"], pytest.approx(one["loss"], rel=1e-6)) for one in evaluations_in(job.out_dir)]
    assert shown["eval/loss"] == measured
    assert [step for step, _ in shown["eval/rewards/accuracies"]] == [4, 6]


def test_a_tracker_that_is_not_installed_is_named(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking_config, "find_spec", lambda name: None if name == "wandb" else object())
    with pytest.raises(ConfigError, match=r"names wandb, not installed .*'pairline\[trackers\]"):
        check_trackers(ALL)
    with pytest.raises(ConfigError, match="wandb"):
        run_here(tracked_job(stage, tmp_path / "run"))
    check_trackers(TrackingConfig(trackers=("tensorboard",)))


def test_a_key_without_use_is_refused():
    with pytest.raises(ValueError, match="only wandb in online mode uses a key"):
        TrackingConfig(trackers=("wandb",), wandb_key_block="key")
    assert TrackingConfig(trackers=("wandb",), wandb_mode="online", wandb_key_block="key").is_online
    assert not TrackingConfig(trackers=("tensorboard",), wandb_mode="online").is_online


@pytest.mark.integration
def test_a_server_that_does_not_answer_leaves_an_offline_run(stage, tmp_path, monkeypatch):
    """A closed port instead of the server; the key only has to look like one."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "5")
    online = TrackingConfig(trackers=("tensorboard", "wandb"), project="tiny", wandb_mode="online")
    job = tracked_job(stage, tmp_path / "run", online)
    assert run_child(job) == 0
    assert_tracked_once(job.out_dir, online.trackers)
    assert "0123456789" * 4 not in "".join(
        path.read_text(errors="replace")
        for path in job.out_dir.rglob("*")
        if path.is_file() and path.suffix in (".json", ".txt", ".log", ".jsonl", ".yaml")
    )


@pytest.mark.integration
def test_a_refused_key_is_the_recipes_error(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "too-short")
    job = tracked_job(stage, tmp_path / "run", TrackingConfig(trackers=("wandb",), wandb_mode="online"))
    assert run_child(job) == ConfigError.exit_code
    assert "refuses the key" in read_error(job).message
