"""A run's own folder: <store>/runs/<time>-<name>/ with its config, state, log, and links to the steps it used.

``pairline status`` reads these files and nothing else, so it needs no server. ``run.json`` is rewritten at each change.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, Field

from dpo_core.contract.errors import StoreError, from_os_error
from dpo_core.contract.job import Job, Result
from dpo_core.contract.regular_file import read_regular
from dpo_core.contract.results import ENVIRONMENT_FILE, LARGEST_RESULT_BYTES
from dpo_core.contract.store import write_json
from dpo_core.contract.visible import visible
from tasks.launch.context import Context, Moment, RunName
from tasks.launch.run_job import step_folder
from tasks.run.environment import run_environment
from tasks.run.store_root import prepare_store

RUN_FILE, CONFIG_FILE, RUN_LOG_FILE = "run.json", "config.json", "run.log"
State = Literal["running", "completed", "failed", "cancelled", "suspended"]
LOGGERS = ("prefect.flow_runs", "prefect.task_runs", "tasks", "flows")


class TaskRecord(BaseModel):
    """One task of the run."""

    name: str
    state: State = "running"
    started: datetime
    seconds: float | None = None


class JobRecord(BaseModel):
    """One job that a step of the run started or found done in the store; a retry is one more."""

    step: str  # of dpo_core: mix, reference, train, ...
    folder: str
    reused: bool = False
    started: datetime
    seconds: float | None = None


class RunRecord(BaseModel):
    """``run.json``. ``pid`` tells a running run from one whose process is gone."""

    name: str
    state: State = "running"
    started: datetime
    ended: datetime | None = None
    seconds: float | None = None  # at work; of a suspended run, since it went on
    pid: int
    flow_run_id: str | None = None
    # "steps" in records of earlier versions
    tasks: list[TaskRecord] = Field([], validation_alias=AliasChoices("tasks", "steps"))
    jobs: list[JobRecord] = []
    outputs: dict[str, str] = {}
    error: str | None = None
    error_kind: str | None = None  # of the error tree (dpo_core/contract/errors.py)


OnTask = Callable[[Path, TaskRecord], None]  # gets the run's folder
# The one thing here that is looked up and not handed on: a record comes from any logger of the process (Prefect's own, too),
# and says nothing of the run that it belongs to. What says it is the context that it is logged in, a thread's or a task's.
_logs: ContextVar[tuple[Path, ...]] = ContextVar("log files", default=())  # a sweep's, then its member's


class RunFolder:
    """Records one run while it goes on."""

    def __init__(self, folder: Path, record: RunRecord, on_task: OnTask | None = None) -> None:
        self.folder, self.record, self._clock, self._suspended = folder, record, time.monotonic(), False
        self._on_task = on_task
        self._writing = threading.Lock()  # members of a sweep end their tasks in threads

    @contextlib.contextmanager
    def task(self, name: str) -> Iterator[None]:
        """Record the task run inside the ``with`` block."""
        task, clock = TaskRecord(name=name, started=datetime.now(UTC)), time.monotonic()
        self.record.tasks.append(task)
        self._tell(task)
        try:
            yield
            task.state = "completed"
        except BaseException as error:
            task.state = self.state_after(error)
            raise
        finally:
            task.seconds = round(time.monotonic() - clock, 3)
            self._tell(task)

    def job(self, job: Job, moment: Moment) -> None:
        """Record a job when it starts and when it ends, so that also a failed run knows where its files are."""
        now = datetime.now(UTC)
        if moment == "ended":
            last = next(record for record in reversed(self.record.jobs) if record.folder == str(job.out_dir))
            last.seconds = round((now - last.started).total_seconds(), 3)
        else:
            self.record.jobs.append(
                JobRecord(step=job.step, folder=str(job.out_dir), started=now, reused=moment == "reused")
            )
        self._write()

    def result(self, step: str, result: Result) -> None:
        """Record the folder of a step's result."""
        self.output(step, step_folder(self.folder.parent.parent, step, result.job_fingerprint))

    def output(self, name: str, path: Path) -> None:
        """Record where a result is, and link to it from the run's folder."""
        self.record.outputs[name] = str(path)
        link = self.folder / name
        with contextlib.suppress(OSError):  # a file system without links: the path stands in run.json
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(path, self.folder))
        self._write()

    def context(self, outer: Context) -> Context:
        """Return the context of the run's steps: they belong to it, and their jobs are recorded in it."""
        name = RunName(self.folder.name, self.record.flow_run_id or "", self.record.name)
        return replace(outer, run=name, on_job=self.job)

    def suspend(self) -> None:
        """Record that the process ends now, and the run goes on in another one once it is resumed."""
        self._suspended = True

    def state_after(self, error: BaseException) -> State:
        """Return how a task or run ended that ``error`` left."""
        if self._suspended:
            return "suspended"
        return "failed" if isinstance(error, Exception) else "cancelled"

    def end(self, state: State, error: BaseException | None = None) -> None:
        """Record how the run ended."""
        self.record.state, self.record.ended = state, datetime.now(UTC)
        self.record.seconds = round(time.monotonic() - self._clock, 3)
        reason = error if state != "suspended" else None
        self.record.error = None if reason is None else f"{reason or type(reason).__name__}"
        self.record.error_kind = getattr(reason, "kind", None)
        self._write()

    def _tell(self, task: TaskRecord) -> None:
        self._write()
        if self._on_task is not None:
            self._on_task(self.folder, task)

    def _write(self) -> None:
        with self._writing:
            write_json(self.folder / RUN_FILE, self.record)


@contextlib.contextmanager
def recorded_run(
    store_root: Path,
    name: str,
    config: BaseModel,
    flow_run_id: str | None = None,
    on_task: OnTask | None = None,
) -> Iterator[RunFolder]:
    """Make the run's folder, log into it, and record how the run ends. Raises ``StoreError`` or ``DiskFull``."""
    folder, record = _resumed_run(store_root, name, flow_run_id) or _new_run(
        store_root, name, config, flow_run_id
    )
    run = RunFolder(folder, record, on_task)
    run._write()
    with _log_file(run.folder / RUN_LOG_FILE):
        try:
            yield run
        except BaseException as error:
            with contextlib.suppress(
                Exception
            ):  # the disk may be what failed; the error that is on its way counts
                run.end(run.state_after(error), error)
            raise
        run.end("completed")


def _resumed_run(store_root: Path, name: str, flow_run_id: str | None) -> tuple[Path, RunRecord] | None:
    """The folder of a run that was suspended: it goes on there, its earlier steps stay recorded."""
    for folder, record in reversed(read_runs(store_root) if flow_run_id else []):
        if (record.flow_run_id, record.name, record.state) == (flow_run_id, name, "suspended"):
            return folder, record.model_copy(update={"state": "running", "ended": None, "pid": os.getpid()})
    return None


def _new_run(
    store_root: Path, name: str, config: BaseModel, flow_run_id: str | None
) -> tuple[Path, RunRecord]:
    started = datetime.now(UTC)
    folder = _new_folder(prepare_store(store_root) / "runs", f"{started:%Y%m%d-%H%M%S}-{name}")
    write_json(folder / CONFIG_FILE, config)
    write_json(folder / ENVIRONMENT_FILE, run_environment(config))
    return folder, RunRecord(name=name, started=started, pid=os.getpid(), flow_run_id=flow_run_id)


def _new_folder(parent: Path, name: str) -> Path:
    """``parent/name``, with a number if another run began in the same second."""
    for number in range(1, 1000):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not parent.is_dir():
                raise from_os_error(
                    NotADirectoryError(20, "Not a directory", str(parent)), "making the store"
                ) from None
        except OSError as error:
            raise from_os_error(error, "making the store") from error
    raise AssertionError("a thousand runs in one second")


class VisibleFormatter(logging.Formatter):
    """Of a file that people look at in a terminal. Its lines hold errors and names of any origin."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


@contextlib.contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Log into ``path`` what this context logs, and what no run's context does. Loggers are the process's, in which members
    of a sweep run side by side."""
    handler, within = logging.FileHandler(path), (*_logs.get(), path)
    handler.setFormatter(VisibleFormatter("%(asctime)s %(levelname)-7s %(message)s"))
    handler.addFilter(lambda _: path in (_logs.get() or within))
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addHandler(handler)
    token = _logs.set(within)
    try:
        yield
    finally:
        _logs.reset(token)
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


def read_runs(store_root: Path) -> list[tuple[Path, RunRecord]]:
    """Return all runs of a store, oldest first; folders that hold no readable record are left out."""
    runs = []
    for path in sorted((store_root / "runs").glob(f"*/{RUN_FILE}")):
        with contextlib.suppress(OSError, ValueError):
            runs.append(
                (path.parent, RunRecord.model_validate_json(read_regular(path, LARGEST_RESULT_BYTES)))
            )
    return runs


def read_run(folder: Path) -> RunRecord:
    """Return the record in a run's folder. Raises ``StoreError`` if there is none."""
    try:
        return RunRecord.model_validate_json(read_regular(folder / RUN_FILE, LARGEST_RESULT_BYTES))
    except (OSError, ValueError) as error:
        raise StoreError(f"{folder / RUN_FILE} cannot be read: {error}") from error


def is_alive(record: RunRecord) -> bool:
    """Return whether the process of a run that says "running" is still there (it may have been killed)."""
    try:
        os.kill(record.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
