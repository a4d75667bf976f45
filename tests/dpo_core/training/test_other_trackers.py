"""Trackers that accelerate offers and our lock files do not have. One that is installed beside them, in an environment made
by hand (`pip install swanlab` and so on), has a test here of what it keeps, as files, without a network."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from dpo_core.contract.tracking_config import IN_THE_EXTRA, NO_REPORTS, TRACKING_DIR, Tracker, TrackingConfig
from tests.dpo_core.training.test_tracking import tracked_job
from tests.killed_run import count_touches, run_until
from tests.step_process import metrics_of
from tests.tiny_stage import reference_job, run_here
from tests.tracker_files import aim_steps, clearml_steps, comet_steps, dvclive_steps, swanlab_steps

READERS: dict[str, Callable[[Path], list[tuple[int, float]]]] = {
    "aim": aim_steps,
    "clearml": clearml_steps,
    "comet_ml": comet_steps,
    "dvclive": dvclive_steps,
    "swanlab": swanlab_steps,
}


def test_every_tracker_that_accelerate_knows_can_be_named():
    assert set(get_args(Tracker)) == set(LOGGER_TYPE_TO_CLASS)
    assert set(READERS) == set(get_args(Tracker)) - set(IN_THE_EXTRA)


def test_no_tracker_tells_its_makers_how_it_is_used(stage, tmp_path, monkeypatch):
    """In any step: DeepSpeed imports MLflow, which then looks for where to report to."""
    from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY

    for variable in NO_REPORTS:
        monkeypatch.delenv(variable, raising=False)
    assert not MLFLOW_DISABLE_TELEMETRY.get()
    run_here(reference_job(tmp_path / "job", stage.data, stage.checkpoint))
    assert MLFLOW_DISABLE_TELEMETRY.get()


INSTALLED = [name for name in READERS if find_spec(name) is not None]
if INSTALLED:

    @pytest.mark.integration
    @pytest.mark.parametrize("name", INSTALLED)
    def test_killed_and_resumed_every_step_is_there_once(stage, tmp_path, monkeypatch, name):
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        tracking = TrackingConfig(
            trackers=(name,),
            project="tiny",
            run_name="a run",
            group="runs",
            tags=("one", "two"),
            notes="A try.",
        )
        touches = count_touches(tracked_job(stage, tmp_path / "alone", TrackingConfig()))
        job = tracked_job(stage, tmp_path / "killed", tracking)
        assert run_until(job, int(0.6 * touches)) == -9
        assert run_until(job, None) == 0
        recorded = [(int(step["step"]), step["loss"]) for step in metrics_of(job.out_dir)]
        assert [step for step, _ in recorded] == list(range(1, 7))
        found = READERS[name](job.out_dir / TRACKING_DIR)
        assert [step for step, _ in found] == [step for step, _ in recorded]
        assert [value for _, value in found] == pytest.approx([value for _, value in recorded], rel=1e-6)
