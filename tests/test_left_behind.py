"""The check at the end of a run of the tests, on runs of its own: one that ends, is interrupted, is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.left_behind import KEPT, MARK, MEMORY, PREFIX, SECONDS_TO_BEGIN, Run, commands
from tests.waiting import PATIENCE_SECONDS, wait_until

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[1]
FORGETFUL = """
import os, subprocess, time
from tests.left_behind import folder_in_memory

def test_that_forgets(tmp_path):
    (tmp_path / "file").write_text("left")
    (folder_in_memory() / "file").write_text("left")
    child = subprocess.Popen(["sh", "-c", "sleep 300 & sleep 300"], start_new_session=True)
    if os.geteuid() == 0:
        (tmp_path / "mounted").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / "mounted"], check=True)
    with open(r"{report}.new", "w") as report:
        report.write(f"{{os.environ['RUN_OF_TESTS']}}")
    os.rename(r"{report}.new", r"{report}")
    time.sleep({seconds})
"""


FORKING = """
import multiprocessing

def test_that_starts_a_server_of_forks():
    child = multiprocessing.get_context("forkserver").Process(target=print)
    child.start()
    child.join()
"""


def pytest_on(file: Path, workers: str) -> subprocess.Popen:
    """pytest with this plugin alone, its output beside the file."""
    with (file.parent / "output").open("w") as output:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "pytest", workers, "-p", "tests.left_behind", "-c", "/dev/null"),
                *("--rootdir", str(file.parent), str(file)),
            ],
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name not in (MARK, "TMPDIR")}
            | {"PAIRLINE_SECONDS_FOR_TESTS_TO_END": "2"},
        )


def started(folder: Path, seconds: int) -> tuple[subprocess.Popen, Run]:
    """pytest with two workers on a test that forgets what it started, and its run once that is there."""
    report = folder / "report"
    (folder / "test_forgetful.py").write_text(FORGETFUL.format(report=report, seconds=seconds))
    process = pytest_on(folder / "test_forgetful.py", "-n2")
    wait_until(report.exists)
    return process, Run(Path(report.read_text()))


def is_gone(run: Run) -> bool:
    return not run.left() and not run.folder.exists() and not (MEMORY / run.folder.name).exists()


def test_what_a_run_leaves_is_told_fails_it_and_is_ended(tmp_path):
    process, run = started(tmp_path, seconds=0)
    assert process.wait(PATIENCE_SECONDS) == 1
    output = (tmp_path / "output").read_text()
    assert "1 passed" in output
    assert "left behind by the tests, and ended" in output
    assert output.count(": sleep 300") == 2
    assert (f"mount {run.folder}/" in output) is (os.geteuid() == 0)
    assert is_gone(run)


def test_the_last_lines_are_pytests(tmp_path):
    """Not those of a library that finds its own temporary folder gone with the run's."""
    file = tmp_path / "test_forking.py"
    file.write_text(FORKING)
    assert pytest_on(file, "-n0").wait(PATIENCE_SECONDS) == 0
    assert "1 passed" in (tmp_path / "output").read_text().splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_a_run_that_is_interrupted_or_killed(tmp_path, number):
    process, run = started(tmp_path, seconds=300)
    assert len(run.left()) >= 3
    process.send_signal(number)
    process.wait(PATIENCE_SECONDS)
    wait_until(lambda: is_gone(run))


def test_what_is_made_once_more_after_an_interrupted_run_is_removed_as_well(tmp_path):
    """As by an engine that ends with the run and still makes the folders of a container's mounts."""
    process, run = started(tmp_path, seconds=300)
    process.kill()
    process.wait(PATIENCE_SECONDS)
    wait_until(lambda: not run.folder.exists())
    (run.folder / "data").mkdir(parents=True)
    wait_until(lambda: not run.folder.exists())


def test_what_a_run_left_whose_watcher_was_killed_too_the_next_run_ends(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    process, run = started(first, seconds=300)
    (watcher,) = (
        pid for pid, command in commands().items() if command.endswith(f"left_behind.py {run.folder}")
    )
    os.kill(watcher, signal.SIGKILL)
    process.kill()
    process.wait(PATIENCE_SECONDS)
    long_ago = time.time() - 2 * SECONDS_TO_BEGIN
    os.utime(run.folder, (long_ago, long_ago))
    assert run.left()
    started(second, seconds=0)[0].wait(PATIENCE_SECONDS)
    wait_until(lambda: is_gone(run))


def test_a_run_that_is_watched_or_has_just_begun_is_not_taken_for_dead(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.left_behind.FOLDERS", tmp_path)
    kept, new, old = (tmp_path / f"{PREFIX}{name}" for name in ("kept", "new", "old"))
    for folder in (kept, new, old):
        folder.mkdir()
    (kept / KEPT).touch()
    long_ago = time.time() - 2 * SECONDS_TO_BEGIN
    for folder in (kept, old):
        os.utime(folder, (long_ago, long_ago))
    assert [run.folder for run in Run.dead()] == [old]
