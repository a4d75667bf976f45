"""A job's result is believed only with exit code 0 and result.json of this very job; the rest has its error class.

The interpreter of these tests is a small real program that behaves well or badly in place of a trainer.
"""

import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from dpo_core.contract.data_jobs import ConvertJob, ConvertResult
from dpo_core.contract.errors import (
    DataError,
    OutOfMemory,
    PairlineError,
    RemoteError,
    StepCrashed,
    StoreBusy,
    StoreError,
    error_of_kind,
)
from dpo_core.contract.job import LOG_FILE
from dpo_core.contract.progress import ProgressEvent
from dpo_core.contract.results import ERROR_FILE, RESULT_FILE
from dpo_core.contract.store import exclusive, sha256_file
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import Context, Stopped
from tasks.launch.own_folder import claim, make_own_folder, own_folder
from tasks.launch.process import ProcessLauncher
from tasks.launch.run_job import in_store, run_job
from tests.waiting import PATIENCE_SECONDS, wait_until

pytestmark = pytest.mark.integration  # real processes

PREAMBLE = """\
#!{python}
import json, os, sys
from collections.abc import Iterator
from pathlib import Path
job_path = Path(sys.argv[sys.argv.index("--job") + 1])
folder = job_path.parent
fingerprint = (folder / "fingerprint").read_text()
with open(folder / "calls", "a") as calls:
    calls.write("call\\n")

def succeed(fingerprint=fingerprint):
    (folder / "weights").write_text("weights")
    (folder / "result.json").write_text(json.dumps(
        {{"job_fingerprint": fingerprint, "path": str(folder), "files": json.loads((folder / "sha").read_text())}}))

"""


@dataclass(frozen=True, slots=True)
class ClearingLauncher(ProcessLauncher):
    """Notes the folders that it was told to clear."""

    cleared: list[Path] = field(default_factory=list)

    def clear(self, folder: Path, context: Context) -> None:
        self.cleared.append(folder)


class Step:
    """A job with a program of the test's own in the trainer's place."""

    def __init__(self, root: Path, body: str, timeout_seconds: int = 60) -> None:
        self.job = in_store(ConvertJob(source_dir="/models", source_sha256="abc"), root / "store")
        self.folder = self.job.out_dir
        self.folder.mkdir(parents=True)
        (self.folder / "fingerprint").write_text(self.job.fingerprint)
        (root / "expected").write_text("weights")
        (self.folder / "sha").write_text(json.dumps({"weights": sha256_file(root / "expected")}))
        program = root / "trainer"
        program.write_text(PREAMBLE.format(python=sys.executable) + textwrap.dedent(body))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        compute = ComputeConfig(stop_grace_seconds=1, step_timeout_seconds=timeout_seconds)
        self.launcher = ClearingLauncher(compute, python=str(program))

    def run(self, context: Context = Context()) -> ConvertResult:
        return run_job(self.job, self.launcher, context)

    @property
    def num_calls(self) -> int:
        return len((self.folder / "calls").read_text().splitlines())


def test_a_step_that_leaves_its_result_succeeds_and_is_not_run_again(tmp_path):
    step = Step(tmp_path, "print('working'); succeed()")
    first = step.run()
    assert first.path == step.folder
    assert step.run() == first
    assert step.num_calls == 1
    log = (step.folder / LOG_FILE).read_text()
    assert "working" in log
    assert "-m dpo_core convert --job" in log


@pytest.mark.parametrize("move", [shutil.copytree, shutil.move])
def test_in_a_store_that_was_copied_or_moved_results_are_where_it_is_now(tmp_path, move):
    step = Step(tmp_path, "succeed()")
    step.run()
    move(tmp_path / "store", tmp_path / "elsewhere" / "store")
    there = in_store(step.job, tmp_path / "elsewhere" / "store")
    assert run_job(there, step.launcher).path == there.out_dir
    assert len((there.out_dir / "calls").read_text().splitlines()) == 1


def test_what_an_earlier_start_left_is_cleared_only_when_no_other_run_watches_it(tmp_path):
    """A run whose container is gone before it looked would take a good result for a crash."""
    step = Step(tmp_path, "succeed()")
    result = step.run()
    assert step.launcher.cleared == []
    heard = Heard()
    with ThreadPoolExecutor() as pool:
        with claim(step.folder):
            waiting = pool.submit(lambda: hear(heard, step))
            assert heard.first.wait(PATIENCE_SECONDS)
            assert step.launcher.cleared == []
        assert waiting.result() == result
    assert step.launcher.cleared == [step.folder]
    assert step.run() == result
    assert step.launcher.cleared == [step.folder] * 2


def test_runs_that_reuse_a_result_at_once_do_not_wait_for_each_other(tmp_path):
    step, heard = Step(tmp_path, "succeed()"), Heard()
    result = step.run()
    with claim(step.folder, shared=True):
        assert hear(heard, step) == result
    assert heard.lines == []


def test_a_result_of_a_step_at_work_is_not_taken_before_its_end(tmp_path):
    """It could put a link in the place of what was looked at."""
    step = Step(
        tmp_path,
        """
        import time
        succeed()
        time.sleep(2)
        (folder / "weights").unlink()
        (folder / "weights").symlink_to("/etc/hostname")""",
    )
    with ThreadPoolExecutor() as pool:
        first = pool.submit(step.run)
        wait_until((step.folder / RESULT_FILE).exists, "the result")
        second = pool.submit(step.run)
        for run in (first, second):
            with pytest.raises(StoreError, match="reached by a link"):
                run.result()


def hear(heard: "Heard", step: Step) -> ConvertResult:
    return step.run(Context(lines=heard))


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_stored_result_whose_file_is_gone_or_changed_is_made_again(tmp_path, damage):
    step = Step(tmp_path, "succeed()")
    step.run()
    weights = step.folder / "weights"
    weights.unlink() if damage == "missing" else weights.write_text("weighty")
    step.run()
    assert step.num_calls == 2
    assert weights.read_text() == "weights"


def test_exit_code_0_without_a_result_is_no_success(tmp_path):
    step = Step(tmp_path, "print('I say all is well')")
    with pytest.raises(StepCrashed, match=r"exit code 0 and left neither(.|\n)*\| I say all is well"):
        step.run()


def test_the_result_of_another_job_is_no_success(tmp_path):
    step = Step(tmp_path, "succeed('f' * 64)")
    with pytest.raises(StepCrashed):
        step.run()


def test_a_result_with_a_failing_exit_is_no_success(tmp_path):
    step = Step(tmp_path, "succeed(); sys.exit(3)")
    with pytest.raises(StepCrashed, match="exit code 3"):
        step.run()


def test_the_reported_error_comes_back_as_its_class_with_the_log(tmp_path):
    step = Step(
        tmp_path,
        """
        (folder / "error.json").write_text(json.dumps({"kind": "data", "message": "row 3 is empty", "step": "convert",
                                                       "job_fingerprint": fingerprint}))
        sys.exit(1)""",
    )
    with pytest.raises(DataError, match="row 3 is empty") as caught:
        step.run()
    assert caught.value.__notes__ == [f"Full log: {own_folder(step.folder) / LOG_FILE}"]


def test_a_reported_kind_is_the_class_that_defines_it_whatever_was_derived_from_it():
    import tasks.launch.docker.engine  # noqa: F401  its EngineLost is a RemoteError, too

    assert [error_of_kind(cls.kind) for cls in (DataError, RemoteError, StoreError, PairlineError)] == [
        DataError,
        RemoteError,
        StoreError,
        PairlineError,
    ]
    assert error_of_kind("of a newer version") is PairlineError


def test_an_error_report_of_an_earlier_attempt_is_not_believed(tmp_path):
    step = Step(tmp_path, "os.kill(os.getpid(), 9)")
    (step.folder / ERROR_FILE).write_text(
        json.dumps(
            {"kind": "data", "message": "old", "step": "convert", "job_fingerprint": step.job.fingerprint}
        )
    )
    with pytest.raises(StepCrashed, match="killed by signal 9"):
        step.run()


def test_the_crash_shows_the_last_50_lines_without_progress(tmp_path):
    step = Step(
        tmp_path,
        """
        for n in range(80):
            print(f"line {n}")
            print('{"pairline": "progress", "step": "train", "done": 1, "total": 2, "unit": "pairs"}')
        sys.exit(1)""",
    )
    with pytest.raises(StepCrashed) as caught:
        step.run()
    shown = [line for line in str(caught.value).splitlines() if line.startswith("  | ")]
    assert shown == [f"  | line {n}" for n in range(30, 80)]


def test_a_log_that_finds_no_room_fails_no_step(tmp_path):
    step = Step(tmp_path, "print('a line'); succeed()")
    (make_own_folder(step.folder) / LOG_FILE).write_bytes(bytes(1 << 20))
    heard, limits = Heard(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))  # the log is as long as a file may be
    try:
        assert step.run(Context(lines=heard)).path == step.folder
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert heard.lines == ["a line"]
    assert (step.folder / LOG_FILE).stat().st_size == 1 << 20


def test_progress_reaches_the_listener(tmp_path):
    step = Step(
        tmp_path,
        """
        print('{"pairline": "progress", "step": "train", "done": 1, "total": 2, "unit": "pairs"}')
        print('{"pairline": broken')
        succeed()""",
    )
    events = []
    step.run(Context(on_progress=events.append))
    assert [(event.step, event.done, event.total) for event in events] == [("train", 1, 2)]
    assert '{"pairline": broken' in (step.folder / LOG_FILE).read_text()


def test_a_folder_that_another_run_is_working_in_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.launch.run_job.SECONDS_FOR_A_DYING_STEP", 0.2)
    step = Step(tmp_path, "succeed()")
    with exclusive(step.folder), pytest.raises(StoreBusy, match="in use by process"):
        step.run()
    assert not (step.folder / RESULT_FILE).exists()


class Heard:
    """Hears log lines; ``first`` is set with the first one."""

    def __init__(self) -> None:
        self.lines, self.first, self.ends = [], threading.Event(), 0

    def line(self, line: str) -> None:
        self.lines.append(line)
        self.first.set()

    def progress(self, event: ProgressEvent) -> None:
        """Not of interest."""

    def end(self) -> None:
        self.ends += 1


def test_two_runs_of_one_job_share_its_work(tmp_path):
    step = Step(
        tmp_path,
        """
        import time
        print('at work', flush=True)
        while not (folder / "go-on").exists():
            time.sleep(0.05)
        succeed()""",
        timeout_seconds=300,
    )
    first, second = Heard(), Heard()

    def run(heard: Heard) -> ConvertResult:
        return step.run(Context(lines=heard))

    with ThreadPoolExecutor() as pool:
        one = pool.submit(run, first)
        assert first.first.wait(PATIENCE_SECONDS)
        other = pool.submit(run, second)
        wait_until(lambda: second.lines or other.done(), "the other run's first line")
        (step.folder / "go-on").touch()
        assert other.result() == one.result()
    assert step.num_calls == 1
    assert step.launcher.cleared == [step.folder]  # by the second, once the first had ended
    (waiting,) = second.lines
    assert waiting.startswith("Step convert waits for another run to end, and takes its result.")
    assert f"in use by process {os.getpid()} since" in waiting
    assert (first.lines, first.ends) == (["at work"], 1)


def test_who_waits_for_another_run_hears_that_it_is_to_stop(tmp_path):
    """A member of a sweep is a thread: no signal cuts its wait short."""
    step, heard, stop = Step(tmp_path, "succeed()"), Heard(), threading.Event()
    with ThreadPoolExecutor() as pool, claim(step.folder):
        waits = pool.submit(step.run, Context(lines=heard, stop=stop))
        assert heard.first.wait(PATIENCE_SECONDS)
        stop.set()
        with pytest.raises(Stopped):
            waits.result(PATIENCE_SECONDS)
    assert not (step.folder / "calls").exists()


def test_who_waits_takes_over_when_the_other_run_is_killed(tmp_path):
    step = Step(
        tmp_path,
        """
        import time
        if (folder / "calls").read_text().count("call") == 1:
            time.sleep(600)
        succeed()""",
    )
    other = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(f"""
        from pathlib import Path
        from tasks.launch.compute_config import ComputeConfig
        from dpo_core.contract.data_jobs import ConvertJob
        from tasks.launch.process import ProcessLauncher
        from tasks.launch.run_job import in_store, run_job
        job = ConvertJob(source_dir="/models", source_sha256="abc")
        launcher = ProcessLauncher(ComputeConfig(), python={step.launcher.python!r})
        run_job(in_store(job, Path({str(tmp_path / "store")!r})), launcher)"""),
        ],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    wait_until((step.folder / "calls").exists, "the first call")
    heard = Heard()

    def run() -> ConvertResult:
        return step.run(Context(lines=heard))

    with ThreadPoolExecutor() as pool:
        result = pool.submit(run)
        assert heard.first.wait(PATIENCE_SECONDS)
        other.kill()
        other.wait()
        assert result.result().path == step.folder
    assert step.num_calls == 2


def test_another_run_is_waited_for_as_long_as_a_step_may_take(tmp_path):
    step = Step(tmp_path, "succeed()", timeout_seconds=1)
    with claim(step.folder), pytest.raises(StoreBusy, match="in use by process"):
        step.run()
    assert not (step.folder / RESULT_FILE).exists()


@dataclass(frozen=True, slots=True)
class QueueingLauncher(ClearingLauncher):
    """Says of its steps that they wait in a queue, as a cluster's do."""

    queues: ClassVar[bool] = True


def test_a_run_that_may_wait_in_a_queue_is_waited_for_longer_than_a_step_may_take(tmp_path):
    """Hours in a queue are no time that a step runs for."""
    step = Step(tmp_path, "succeed()", timeout_seconds=1)
    step.launcher = QueueingLauncher(step.launcher.compute, python=step.launcher.python)
    with ThreadPoolExecutor() as pool:
        with claim(step.folder):
            stop = Waits(seconds=2)
            waits = pool.submit(step.run, Context(stop=stop))
            wait_until(lambda: stop.is_long or waits.done(), "more than a step's time")
            assert not waits.done()
        assert waits.result(PATIENCE_SECONDS).path == step.folder
    assert step.num_calls == 1


class Waits(threading.Event):
    """Notes that who waits for it has waited for so long."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.is_long = seconds, False

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds -= timeout or 0.0
        self.is_long = self.seconds < 0
        return super().wait(timeout)


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group that allows 64 MiB; making one takes root, which CI has."""
    if os.geteuid() != 0:
        pytest.skip("making a control group takes root")
    old = Path("/sys/fs/cgroup/memory")
    group = (old if old.is_dir() else old.parent) / f"pairline-test-{os.getpid()}"
    group.mkdir()
    (group / ("memory.limit_in_bytes" if old.is_dir() else "memory.max")).write_text(str(64 << 20))
    yield group
    group.rmdir()


def test_a_step_that_the_kernel_kills_for_memory_is_not_retried(tmp_path, memory_group):
    step = Step(
        tmp_path,
        f"""
        Path({str(memory_group / "cgroup.procs")!r}).write_text(str(os.getpid()))
        bytearray(200 << 20)
    """,
    )
    with pytest.raises(OutOfMemory, match="killed by the kernel for lack of memory") as caught:
        step.run()
    assert not caught.value.retryable


def test_a_step_killed_by_somebody_is_a_crash_and_worth_a_retry(tmp_path):
    step = Step(tmp_path, "os.kill(os.getpid(), 9)")
    with pytest.raises(StepCrashed, match="killed by signal 9"):
        step.run()
