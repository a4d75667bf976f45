"""A run's own folder: <store>/runs/<time>-<name>/ with its config, state, log, and links to the steps it used.

``pairline status`` reads these files and nothing else, so it needs no server. ``run.json`` is rewritten at each change.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from dpo_core.errors import StoreError, from_os_error
from dpo_core.results import Result
from dpo_core.store import write_json
from tasks.launch.run_job import step_folder

RUN_FILE, CONFIG_FILE, RUN_LOG_FILE = "run.json", "config.json", "run.log"
State = Literal["running", "completed", "failed", "cancelled"]
LOGGERS = ("prefect.flow_runs", "prefect.task_runs", "tasks", "flows")


class StepRecord(BaseModel):
    """One task of the run."""

    name: str
    state: State = "running"
    started: datetime
    seconds: float | None = None


class RunRecord(BaseModel):
    """``run.json``. ``pid`` tells a running run from one whose process is gone."""

    name: str
    state: State = "running"
    started: datetime
    seconds: float | None = None
    pid: int
    flow_run_id: str | None = None
    steps: list[StepRecord] = []
    outputs: dict[str, str] = {}
    error: str | None = None


StepListener = Callable[[Path, StepRecord], None]
step_listener: ContextVar[StepListener | None] = ContextVar("step listener", default=None)  # gets the run's folder


class RunFolder:
    """Records one run while it goes on."""

    def __init__(self, folder: Path, record: RunRecord) -> None:
        self.folder, self.record, self._clock = folder, record, time.monotonic()

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Record the task run inside the ``with`` block."""
        step, clock = StepRecord(name=name, started=datetime.now(UTC)), time.monotonic()
        self.record.steps.append(step)
        self._tell(step)
        try:
            yield
            step.state = "completed"
        except BaseException as error:
            step.state = "failed" if isinstance(error, Exception) else "cancelled"
            raise
        finally:
            step.seconds = round(time.monotonic() - clock, 3)
            self._tell(step)

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

    def end(self, state: State, error: BaseException | None = None) -> None:
        """Record how the run ended."""
        self.record.state, self.record.seconds = state, round(time.monotonic() - self._clock, 3)
        self.record.error = None if error is None else f"{error or type(error).__name__}"
        self._write()

    def _tell(self, step: StepRecord) -> None:
        self._write()
        if listener := step_listener.get():
            listener(self.folder, step)

    def _write(self) -> None:
        write_json(self.folder / RUN_FILE, self.record)


@contextlib.contextmanager
def recorded_run(store_root: Path, name: str, config: BaseModel, flow_run_id: str | None = None) -> Iterator[RunFolder]:
    """Make the run's folder, log into it, and record how the run ends. Raises ``StoreError`` or ``DiskFull``."""
    started = datetime.now(UTC)
    folder = _new_folder(store_root / "runs", f"{started:%Y%m%d-%H%M%S}-{name}")
    write_json(folder / CONFIG_FILE, config)
    run = RunFolder(folder, RunRecord(name=name, started=started, pid=os.getpid(), flow_run_id=flow_run_id))
    run._write()
    with _log_file(folder / RUN_LOG_FILE):
        try:
            yield run
        except BaseException as error:
            with contextlib.suppress(Exception):  # the disk may be what failed; the error that is on its way counts
                run.end("failed" if isinstance(error, Exception) else "cancelled", error)
            raise
        run.end("completed")


def _new_folder(parent: Path, name: str) -> Path:
    """``parent/name``, with a number if another run began in the same second."""
    for number in range(1, 1000):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not parent.is_dir():
                raise from_os_error(NotADirectoryError(20, "Not a directory", str(parent)), "making the store") from None
        except OSError as error:
            raise from_os_error(error, "making the store") from error
    raise AssertionError("a thousand runs in one second")


@contextlib.contextmanager
def _log_file(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


def read_runs(store_root: Path) -> list[tuple[Path, RunRecord]]:
    """All runs of a store, oldest first; folders that hold no readable record are left out."""
    runs = []
    for path in sorted((store_root / "runs").glob(f"*/{RUN_FILE}")):
        with contextlib.suppress(OSError, ValueError):
            runs.append((path.parent, RunRecord.model_validate_json(path.read_bytes())))
    return runs


def read_run(folder: Path) -> RunRecord:
    """The record in a run's folder. Raises ``StoreError`` if there is none."""
    try:
        return RunRecord.model_validate_json((folder / RUN_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{folder / RUN_FILE} cannot be read: {error}") from error


def is_alive(record: RunRecord) -> bool:
    """Whether the process of a run that says "running" is still there (it may have been killed)."""
    try:
        os.kill(record.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
