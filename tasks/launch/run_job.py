"""Runs one job to a verified result: reuse it, or launch the step and judge what it left behind."""

import contextlib
import logging
import time
from collections import deque
from pathlib import Path

from pydantic import BaseModel

from dpo_core.errors import OutOfMemory, PairlineError, StepCrashed, StoreError, error_of_kind, from_os_error
from dpo_core.jobs import LOG_FILE, Job, TrainJob
from dpo_core.progress import parse_line
from dpo_core.results import ERROR_FILE, RESULT_FILE, Result, read_error, read_result
from dpo_core.store import exclusive, verify_files, write_json
from tasks.launch.command import ACCELERATE_FILE, accelerate_settings, step_command
from tasks.launch.compute import check_devices, this_machine
from tasks.launch.launcher import CommandSpec, Launcher, OnProgress, current_listener

log = logging.getLogger(__name__)
NUM_LAST_LINES = 50
LOG_NOTE = "Full log: "  # how an error's note begins that names the log file
SECONDS_FOR_A_DYING_STEP = 5.0  # a killed predecessor lets go of its lock within moments


def step_folder(store_root: Path, step: str, fingerprint: str) -> Path:
    """Where a step's result lives. The store's layout is this line: <store>/<step>/<fingerprint>/."""
    return store_root.resolve() / step / fingerprint[:16]


def in_store(job: Job, store_root: Path) -> Job:
    """The job with ``out_dir`` at its place in the store. Its fingerprint does not depend on places."""
    return job.model_copy(update={"out_dir": step_folder(store_root, job.step, job.fingerprint)})


def run_job(job: Job, launcher: Launcher, on_progress: OnProgress | None = None) -> Result:
    """The result of ``job``: at once if a complete one is in its folder, else by running the step.

    ``on_progress`` defaults to the listener of the context (see ``launcher.listening``). Raises the error that the step
    reported, ``StepCrashed`` with its last lines if it died without a word, ``TimedOut``, ``StoreBusy``.
    """
    if result := reusable_result(job):
        return result
    with exclusive(job.out_dir, wait_seconds=SECONDS_FOR_A_DYING_STEP):
        (job.out_dir / ERROR_FILE).unlink(missing_ok=True)
        job.write()
        machine = this_machine()
        write_json(job.out_dir / ACCELERATE_FILE, accelerate_settings(on_cpu=machine.num_gpus == 0))
    check_devices(launcher.compute, machine)
    command = step_command(job, launcher.compute, machine, launcher.python)
    kills_before = out_of_memory_kills()
    last_lines, exit_code = _launch(command, launcher, on_progress or current_listener())
    result = read_result(job)
    if result is not None and exit_code == 0:
        return result
    raise _failure(job, exit_code, last_lines, out_of_memory_kills() - kills_before)


def reusable_result(job: Job) -> Result | None:
    """The job's earlier result if its files are all there and undamaged; a damaged one is set aside and made again."""
    result = read_result(job)
    if result is None:
        return None
    try:
        _verify(result, job.out_dir)
        return result
    except StoreError as error:
        log.warning("The stored result of %s is made again: %s", job.step, error)
        with contextlib.suppress(FileNotFoundError):
            (job.out_dir / RESULT_FILE).unlink()
        return None


def _verify(result: Result, folder: Path) -> None:
    for path in _paths_in(result):
        if not path.exists():
            raise StoreError(f"{path} is missing.")
    verify_files(getattr(result, "weights_path", folder), getattr(result, "weights_sha256", {}))
    for value in (result, *(getattr(result, name) for name in type(result).model_fields)):
        if hasattr(value, "path") and hasattr(value, "files"):
            verify_files(value.path, value.files)


def _paths_in(value: object) -> list[Path]:
    if isinstance(value, Path):
        return [value]
    if isinstance(value, BaseModel):
        return [path for name in type(value).model_fields for path in _paths_in(getattr(value, name))]
    return []


def _launch(command: CommandSpec, launcher: Launcher, on_progress: OnProgress | None) -> tuple[list[str], int]:
    """Run the command; everything it prints goes to ``log.txt``, its progress to ``on_progress``."""
    last_lines: deque[str] = deque(maxlen=NUM_LAST_LINES)
    try:
        log_file = (command.folder / LOG_FILE).open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise from_os_error(error, f"writing {LOG_FILE}") from error

    def on_line(line: str) -> None:
        with contextlib.suppress(OSError):  # a full disk is reported by the step itself
            log_file.write(line + "\n")
        if (event := parse_line(line)) is None:
            last_lines.append(line)
        elif on_progress is not None:
            on_progress(event)

    with log_file:
        on_line(f"\n# {time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(command.argv)}")
        last_lines.clear()
        exit_code = launcher.run(command, on_line)
    return list(last_lines), exit_code


def _failure(job: Job, exit_code: int, last_lines: list[str], memory_kills: int) -> PairlineError:
    """The error of a step that left no result: what it reported itself, or that it died without a word."""
    report = read_error(job)
    if report is not None:
        error = error_of_kind(report.kind)(report.message)
    elif _was_killed(exit_code, last_lines) and memory_kills:
        error = OutOfMemory(f"Step {job.step} was killed by the kernel for lack of memory. {_what_to_lower(job)}")
    else:
        how = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code}"
        tail = "\n".join(f"  | {line}" for line in last_lines)
        error = StepCrashed(f"Step {job.step} {how} and left neither a result nor an error report. Its "
                            f" last lines:\n{tail or '  | (it printed nothing)'}")
    error.add_note(f"{LOG_NOTE}{job.out_dir / LOG_FILE}")
    return error


def _was_killed(exit_code: int, last_lines: list[str]) -> bool:
    """accelerate ends with 1 whatever its child died of, so the signal stands only in what it prints."""
    return exit_code == -9 or any("SIGKILL" in line or "exitcode: -9" in line for line in last_lines)


def out_of_memory_kills(vmstat: Path = Path("/proc/vmstat")) -> int:
    """Processes that the kernel has killed for lack of memory since it started; 0 where it does not tell."""
    try:
        counts = dict(line.split() for line in vmstat.read_text().splitlines())
    except OSError:
        return 0
    return int(counts.get("oom_kill", 0))


def _what_to_lower(job: Job) -> str:
    if isinstance(job, TrainJob):
        return ("Lower train.tokens_per_forward or data.max_length_tokens, or turn on train.gradient_checkpointing; "
                "`pairline plan` estimates what a run needs.")
    return "Lower the step's tokens_per_batch or data.max_length_tokens, or run it where there is more memory."
