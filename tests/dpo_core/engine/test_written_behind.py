"""Checkpoints written behind the training, by two real ranks whose writers are slow: the same bits, and all or nothing."""

import json
from pathlib import Path

import pytest

from dpo_core.contract.checkpoint_files import RUN_MANIFEST, RUN_OPTIMIZER, RUN_WEIGHTS, files_of
from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.results import read_result
from dpo_core.contract.store import verify_files
from dpo_core.engine.checkpoint import newest_checkpoint
from tests.dpo_core.engine.test_sharded import SHARDINGS, job_in
from tests.dpo_core.training.test_resume import assert_same_run, checkpoints
from tests.programs.killed_writers import KILL
from tests.random_moments import chance
from tests.step_process import run_ranks, start_ranks, wait_for_death
from tests.waiting import PATIENCE_SECONDS
from tests.whole_tensors import whole_tensors

pytestmark = pytest.mark.integration
SLOW = "tests.programs.killed_writers"
NAMES = ("plain", "zero3", "fsdp2")


@pytest.fixture(scope="module")
def at_once(stage, tmp_path_factory):
    """Runs whose small checkpoints are written before the next step."""
    folder, results = tmp_path_factory.mktemp("at-once"), {}

    def result(name: str):
        if name not in results:
            results[name] = run_ranks(job_in(stage, folder / name, SHARDINGS[name]))
        return results[name]

    return result


def behind(folder: Path) -> list[dict]:
    return [json.loads((folder / f"behind-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_what_the_run_was_when_it_was_begun(stage, at_once, tmp_path, name):
    job = job_in(stage, tmp_path, SHARDINGS[name])
    result = run_ranks(job, module=SLOW)
    assert all(of_rank["behind"] > 0 for of_rank in behind(tmp_path)), "no update came while it was written"
    assert_same_run(result, at_once(name))
    assert checkpoints(job) == ["step-00000005", "step-00000010", "step-00000015"]
    for step in checkpoints(job):
        ours, theirs = (run.weights_path.parent / "checkpoints" / step for run in (result, at_once(name)))
        for file in (RUN_WEIGHTS, RUN_OPTIMIZER):
            assert len(files_of(ours, file)) == 2
            expected = whole_tensors(theirs, file)
            for key, values in whole_tensors(ours, file).items():
                assert values.equal(expected[key]), (step, key)
    assert 0 < result.checks["checkpoint_blocked_seconds"] < behind(tmp_path)[0]["lasted"]


def kill_in_writing(job: TrainJob, rank: int, processes: int, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """Run until the rank is killed between two chunks of its part. -> the step of the newest checkpoint, which is whole"""
    monkeypatch.setenv(KILL, f"{rank}:{chance().randint(5, 60)}")
    ranks = start_ranks(job, processes, SLOW)
    assert ranks.wait(PATIENCE_SECONDS) != 0
    assert read_result(job) is None, "the run was over before the kill"
    wait_for_death(ranks)
    found = newest_checkpoint(job.out_dir / "checkpoints", job.fingerprint)
    for folder in (job.out_dir / "checkpoints").glob("step-*"):
        verify_files(folder, json.loads((folder / RUN_MANIFEST).read_bytes()))
    assert checkpoints(job)[-1:] == ([found[0].name] if found else [])
    return found[1].step if found else None


@pytest.mark.parametrize(("name", "rank"), [("plain", 1), ("zero3", 0), ("fsdp2", 1)])
def test_a_rank_killed_in_the_middle_of_writing_leaves_the_checkpoint_before(
    stage, at_once, tmp_path, monkeypatch, name, rank
):
    job = job_in(stage, tmp_path, SHARDINGS[name])
    found = kill_in_writing(job, rank, 2, monkeypatch)
    result = run_ranks(job)
    assert result.resumed_from_step == found
    assert_same_run(result, at_once(name))
    assert not list(tmp_path.rglob("*.aside")), "a half-written file was left behind"
