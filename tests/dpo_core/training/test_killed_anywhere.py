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

from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.results import read_result
from tests.dpo_core.training.test_resume import assert_same_run
from tests.killed_run import count_touches, run_until
from tests.tiny_stage import TinyStage

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
