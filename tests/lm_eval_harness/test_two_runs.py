"""Two runs that score one task at the same time: jobs with other task lists share the cache's folders and no lock."""

from pathlib import Path

import pytest

from dpo_core.contract import store
from dpo_core.contract.results import read_result
from dpo_core.steps import benchmark
from tests.benchmark_jobs import benchmark_job, folder_of, write_tasks
from tests.tiny_models import make_model
from tests.tiny_stage import checkpoint_ref, run_here


@pytest.mark.parametrize("moment", ["while it is scored", "while it is put in place"])
def test_what_another_run_has_kept_meanwhile_is_left_alone_and_taken(tmp_path, monkeypatch, moment):
    checkpoint = checkpoint_ref(make_model(tmp_path / "model"))
    common = {
        "tasks": ("one",),
        "folders": (folder_of(write_tasks(tmp_path / "tasks", ("one",))),),
        "limit": 2,
        "cache_dir": tmp_path / "scores",
    }
    first = run_here(benchmark_job(tmp_path / "a", checkpoint, **common))
    (kept,) = (tmp_path / "scores").iterdir()
    theirs, file = kept.rename(tmp_path / "theirs"), kept / benchmark.SCORES_FILE
    written = (theirs / file.name).stat()

    def with_theirs_after(original):
        def call(*arguments, **more):
            found = original(*arguments, **more)
            theirs.rename(kept)
            return found

        return call

    if moment == "while it is scored":
        monkeypatch.setattr(benchmark, "_evaluate", with_theirs_after(benchmark._evaluate))
    else:  # after the look whether something is there that would be replaced
        monkeypatch.setattr(store, "flush_to_disk", flushing_until(kept, theirs))
        monkeypatch.setattr(Path, "exists", missing(kept))
    job = benchmark_job(tmp_path / "b", checkpoint, **common)
    assert run_here(job).scores == first.scores
    assert read_result(job).samples_files == first.samples_files
    now = file.stat()
    assert (now.st_ino, now.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert [one.name for one in (tmp_path / "scores").iterdir()] == [kept.name]


def flushing_until(kept: Path, theirs: Path):
    """Flushes; with the folder that is to be put in place, the other run's comes there."""
    original = store.flush_to_disk

    def flush(path: Path) -> None:
        original(path)
        if path.parent == kept.parent and theirs.exists():
            theirs.rename(kept)

    return flush


def missing(folder: Path):
    """``Path.exists`` of a moment ago, for one folder."""
    original = Path.exists
    return lambda path, **more: path != folder and original(path, **more)
