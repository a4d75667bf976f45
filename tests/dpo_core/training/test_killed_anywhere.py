"""Exact resume as a property: killed at random moments, any number of times, a run ends with the bits of one left alone.

Moments are places in the code where a file of the run is about to be touched: between steps (metrics), before and while a
checkpoint is written, renamed, an old one deleted, while the final weights and the result are written. One process here; two
processes are killed in ``test_sharded``.
"""

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.results import read_result
from tests.dpo_core.training.test_resume import assert_same_run
from tests.killed_run import count_touches, run_until
from tests.step_process import evaluations_in, kill_when, run_child, start
from tests.tiny_stage import TinyStage, run_here

pytestmark = pytest.mark.integration

ACCUMULATIONS = (1, 2)


def job_in(stage: TinyStage, folder: Path, accumulation: int) -> TrainJob:
    """6 steps of 4 pairs, a checkpoint after every second one, one kept."""
    job = stage.train_job(
        folder, "dpo", per_device=4 // accumulation, max_steps=6, checkpoint_every=2, keep_checkpoints=1
    )
    job.write()
    return job


@pytest.fixture(scope="module")
def left_alone(stage, tmp_path_factory) -> dict:
    """Per accumulation: the result of a whole run and how often it touches its files."""
    runs = {}
    for accumulation in ACCUMULATIONS:
        job = job_in(stage, tmp_path_factory.mktemp("alone"), accumulation)
        touches = count_touches(job)
        runs[accumulation] = read_result(job), touches
    return runs


def test_a_run_touches_its_files_often_enough_to_be_killed_anywhere(left_alone):
    assert all(touches > 40 for _, touches in left_alone.values())


@settings(max_examples=12, deadline=None, print_blob=True)
@given(accumulation=st.sampled_from(ACCUMULATIONS), moments=st.lists(st.floats(0, 1), min_size=1, max_size=3))
def test_killed_anywhere_it_ends_with_the_same_bits(
    stage, tmp_path_factory, left_alone, accumulation, moments
):
    """``moments`` are shares of a whole run's touches; a resumed run may end before a late one."""
    expected, touches = left_alone[accumulation]
    job = job_in(stage, tmp_path_factory.mktemp("killed"), accumulation)
    exits = [run_until(job, 1 + int(moment * (touches - 1))) for moment in moments]
    assert exits[0] == -9
    assert set(exits) <= {-9, 0}
    assert run_until(job, None) == 0
    result = read_result(job)
    assert_same_run(result, expected)
    assert not list(job.out_dir.rglob("*.aside")), "a half-written file was left behind"
    shutil.rmtree(job.out_dir)


def evaluated_job_in(stage: TinyStage, folder: Path) -> TrainJob:
    """4 steps, each of them evaluated, answers at every second one."""
    asked = EvaluationConfig(every=1, answers_every=2, num_prompts=3, max_new_tokens=4, measure_kl=True)
    job = stage.train_job(folder, "dpo", max_steps=4, checkpoint_every=2, evaluation=asked)
    job.write()
    return job


def figures_in(folder: Path) -> list[dict]:
    """Evaluations without what they took."""
    return [
        {name: value for name, value in one.items() if name != "evaluation_seconds"}
        for one in evaluations_in(folder)
    ]


@pytest.fixture(scope="module")
def evaluated(stage, tmp_path_factory) -> tuple[TrainJob, int]:
    """A whole run with evaluations, and how often it touches its files."""
    job = evaluated_job_in(stage, tmp_path_factory.mktemp("evaluated"))
    return job, count_touches(job)


@settings(max_examples=4, deadline=None, print_blob=True)
@given(moments=st.lists(st.floats(0, 1), min_size=1, max_size=3))
def test_killed_anywhere_with_evaluations_each_is_there_once(stage, tmp_path_factory, evaluated, moments):
    """Their lines, the answers that are shown, the start's verdicts: killed before and behind each of these files."""
    whole, touches = evaluated
    job = evaluated_job_in(stage, tmp_path_factory.mktemp("killed"))
    for moment in moments:
        run_until(job, 1 + int(moment * (touches - 1)))
    assert run_until(job, None) == 0
    assert_same_run(read_result(job), read_result(whole))
    assert [one["step"] for one in figures_in(job.out_dir)] == [0, 1, 2, 3, 4]
    assert figures_in(job.out_dir) == figures_in(whole.out_dir)
    for file in ("answers.jsonl", "start_verdicts.json"):
        assert (job.out_dir / file).read_text() == (whole.out_dir / file).read_text()
    shutil.rmtree(job.out_dir)


def test_the_step_evaluate_killed_between_its_two_models_time_after_time_finds_the_same(stage, tmp_path):
    whole = run_here(
        stage.evaluate_job(tmp_path / "whole", stage.checkpoint, num_prompts=3, max_new_tokens=4)
    )
    job = stage.evaluate_job(tmp_path / "killed", stage.checkpoint, num_prompts=3, max_new_tokens=4)
    log = job.out_dir / "log.txt"
    for number in (1, 2):
        kill_when(start(job), lambda number=number: log.read_text().count("before: loss") == number)
        assert read_result(job) is None
    assert run_child(job) == 0
    found = read_result(job)
    assert (found.before, found.after, found.answers) == (whole.before, whole.after, whole.answers)
