"""The best step's weights come out, whatever happens on the way. A run of 9 steps, evaluated after each second one: by the
figure that is asked for here those of 2, 4 and 6 are each the best so far, those of 8 and 9 are not."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dpo_core.contract.errors import ConfigError, DataError, StoreError
from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.jobs import ExportJob, TrainJob, TrainResult
from dpo_core.contract.keep_best import KeepBest
from dpo_core.steps import train as train_step
from dpo_core.training.saving import Saving
from tests.step_process import evaluations_in, metrics_of
from tests.tiny_stage import TinyStage, run_here

BY = KeepBest(metric="rewards/average", mode="min")
BEST, LAST = 6, 9


def job_in(stage: TinyStage, folder: Path, keep: KeepBest | None = BY, **train) -> TrainJob:
    few = {"checkpoint_every": 1000, "checkpoint_every_minutes": None, "keep_checkpoints": 1}
    return stage.train_job(folder, evaluation=EvaluationConfig(every=2), keep_best=keep, **(few | train))


@pytest.fixture(scope="module")
def plain(stage, tmp_path_factory) -> TrainResult:
    """The run without a best, with every checkpoint."""
    folder = tmp_path_factory.mktemp("plain")
    return run_here(job_in(stage, folder, None, checkpoint_every=1, keep_checkpoints=100))


@pytest.fixture(scope="module")
def whole(stage, tmp_path_factory) -> TrainResult:
    return run_here(job_in(stage, tmp_path_factory.mktemp("whole")))


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_what_comes_out_are_the_bits_of_the_best_step(plain, whole):
    folder = whole.metrics_path.parent
    figures = {one["step"]: one["rewards/average"] for one in evaluations_in(folder)}
    assert min(figures, key=figures.__getitem__) == BEST  # else this asks nothing
    assert whole.best is not None
    assert (whole.best.step, whole.best.value) == (BEST, figures[BEST])
    assert (whole.best.last_step, whole.best.last_value, whole.best.stopped_early) == (
        LAST,
        figures[LAST],
        False,
    )
    assert whole.steps == LAST
    assert plain.best is None
    expected = weights(plain.metrics_path.parent / "checkpoints" / f"step-{BEST:08d}")
    torch.testing.assert_close(weights(whole.weights_path), expected, rtol=0, atol=0)
    assert whole.weights_fingerprint != plain.weights_fingerprint
    assert [one["loss"] for one in metrics_of(folder)] == [
        one["loss"] for one in metrics_of(plain.metrics_path.parent)
    ]


def test_it_is_kept_beside_the_newest(stage, whole, tmp_path):
    assert checkpoints(whole.metrics_path.parent) == [BEST]
    result = run_here(job_in(stage, tmp_path, checkpoint_every=4, keep_checkpoints=1))
    assert checkpoints(tmp_path) == [BEST, 8]
    assert (
        result.weights_fingerprint == whole.weights_fingerprint
    )  # when checkpoints are written changes nothing
    assert result.best == whole.best


@pytest.mark.parametrize("moment", [BEST, LAST])
def test_killed_between_an_evaluation_and_its_mark_the_result_is_the_same(
    stage, whole, tmp_path, monkeypatch, moment
):
    after_step = Saving.after_step

    def dies(self, state, is_end):
        if state.step == moment:
            raise KeyboardInterrupt
        after_step(self, state, is_end)

    monkeypatch.setattr(Saving, "after_step", dies)
    job = job_in(stage, tmp_path, checkpoint_every=3)
    with pytest.raises(KeyboardInterrupt):
        run_here(job)
    assert evaluations_in(tmp_path)[-1]["step"] == moment
    monkeypatch.undo()
    result = run_here(job)
    assert (result.best, result.weights_fingerprint) == (whole.best, whole.weights_fingerprint)


def test_a_best_checkpoint_that_is_damaged_is_made_again(stage, whole, tmp_path, monkeypatch):
    job = job_in(stage, tmp_path, checkpoint_every=4, keep_checkpoints=3)
    best = tmp_path / "checkpoints" / f"step-{BEST:08d}" / "model.safetensors"

    def damages(trainer):
        best.write_bytes(b"\0" * 8 + best.read_bytes()[8:])
        return take_best(trainer)

    take_best = train_step.take_best
    monkeypatch.setattr(train_step, "take_best", damages)
    with pytest.raises(
        StoreError, match="step-00000006, the checkpoint of the best evaluation, is gone or damaged"
    ):
        run_here(job)
    assert checkpoints(tmp_path) == [4, BEST, 8]
    monkeypatch.undo()
    result = run_here(job)  # not from step 8, behind which the best would be lost
    assert result.resumed_from_step == 4
    assert (result.best, result.weights_fingerprint) == (whole.best, whole.weights_fingerprint)


def test_patience_ends_the_run_also_when_it_goes_on_from_there(stage, plain, tmp_path, monkeypatch):
    patient = BY.model_copy(update={"patience": 1})
    result = run_here(job_in(stage, tmp_path / "whole", patient))
    assert (result.steps, result.best.step, result.best.stopped_early) == (8, BEST, True)
    assert result.last_metrics["step"] == 8
    assert result.pairs == 8 * 4
    expected = weights(plain.metrics_path.parent / "checkpoints" / f"step-{BEST:08d}")
    torch.testing.assert_close(weights(result.weights_path), expected, rtol=0, atol=0)

    def dies(trainer):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_step, "take_best", dies)
    job = job_in(stage, tmp_path / "killed", patient, checkpoint_every=1)
    with pytest.raises(KeyboardInterrupt):
        run_here(job)
    monkeypatch.undo()
    again = run_here(job)
    assert (again.steps, again.best, again.weights_fingerprint) == (
        8,
        result.best,
        result.weights_fingerprint,
    )
    assert metrics_of(tmp_path / "killed")[-1]["step"] == 8


def test_the_checkpoint_of_any_step_is_exported_as_it_is(stage, plain, tmp_path):
    folder = plain.metrics_path.parent / "checkpoints" / "step-00000003"
    job = ExportJob(
        weights_path=folder, weights_fingerprint="x", checkpoint=stage.checkpoint, precision="fp32"
    )
    exported = run_here(job.at(tmp_path))
    of_step, of_export = weights(folder), weights(exported.path)
    for name in of_export.keys() & of_step.keys():
        torch.testing.assert_close(of_export[name], of_step[name], rtol=0, atol=0)
    assert len(of_export.keys() & of_step.keys()) > 10


def test_a_metric_that_is_not_there_is_refused_before_the_first_step(stage, tmp_path):
    keep = KeepBest(metric="by_source/other/rewards/accuracies")
    with pytest.raises(ConfigError, match="It measures: loss, rewards/accuracies, "):
        run_here(job_in(stage, tmp_path, keep))
    without = stage.train_job(tmp_path / "without", keep_best=BY)
    with pytest.raises(DataError, match="has, but evaluation"):
        run_here(without)
