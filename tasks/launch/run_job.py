"""Runs one job to a verified result: reuse it, or launch the step and judge what it left behind."""

import contextlib
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from dpo_core.contract.errors import (
    OutOfMemory,
    PairlineError,
    StepCrashed,
    StoreBusy,
    StoreError,
    error_of_kind,
    from_os_error,
)
from dpo_core.contract.job import LOG_FILE, Job, R
from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.results import ERROR_FILE, RESULT_FILE, read_error, read_result
from dpo_core.contract.store import exclusive, write_json
from tasks.launch.command import ACCELERATE_FILE, accelerate_settings, nodes_of, step_command
from tasks.launch.compute import check_devices
from tasks.launch.context import Context
from tasks.launch.launcher import Ended, Launcher
from tasks.launch.log_position import saved_times
from tasks.launch.own_folder import claim, forget_what_was, own_folder, show_log
from tasks.launch.result_check import check_result, in_this_store
from tasks.launch.step_log import step_log

log = logging.getLogger(__name__)
J = TypeVar("J", bound=Job)
LOG_NOTE = "Full log: "  # how an error's note begins that names the log file
SECONDS_FOR_A_DYING_STEP = 5.0  # a killed predecessor lets go of its lock within moments
SECONDS_BETWEEN_LOOKS = 0.5  # at another run's claim
LONGEST_REPORT = 10_000  # characters of what a step says went wrong; error.json has more


def step_folder(store_root: Path, step: str, fingerprint: str) -> Path:
    """Return where a step's result lives. The store's layout is this line: <store>/<step>/<fingerprint>/."""
    return store_root.resolve() / step / fingerprint[:16]


def in_store(job: J, store_root: Path) -> J:
    """Return the job at its place in the store. Its fingerprint does not depend on places."""
    return job.at(step_folder(store_root, job.step, job.fingerprint))


def run_job(job: Job[R], launcher: Launcher, context: Context = Context()) -> R:
    """Return the result of ``job``: at once if a complete one is in its folder, else by running the step.

    Another run at work on the same job is waited for, and replaced if it dies; its result is this one's.
    Raises the error that the step
    reported, ``StepCrashed`` with its last lines if it died without a word, ``TimedOut``, and ``StoreBusy`` if the other
    run takes longer than a step may.
    """
    if result := _left_at_rest(job):
        _clear_unless_watched(job, launcher, context)
        context.tell_job(job, "reused")
        return result
    patience = math.inf if launcher.queues else launcher.compute.step_timeout_seconds
    with claimed(job, patience, context, launcher.queues):
        if read_result(job) is not None:
            launcher.clear(job.out_dir, context)
        if result := reusable_result(job):
            context.tell_job(job, "reused")
            return result
        return _run(job, launcher, context)


def _left_at_rest(job: Job[R]) -> R | None:
    """An earlier result that nobody writes to any more: what a step at work has written, it can change once it was looked
    at."""
    if not job.out_dir.is_dir():
        return None
    with contextlib.suppress(StoreBusy), claim(job.out_dir, shared=True):
        return None if saved_times(job.out_dir) else reusable_result(job)
    return None


def _clear_unless_watched(job: Job, launcher: Launcher, context: Context) -> None:
    """A run that holds the claim has yet to see its container end. What stays behind fails nobody: `pairline reap`."""
    with contextlib.suppress(PairlineError, OSError), claim(job.out_dir, is_of_several=launcher.queues):
        launcher.clear(job.out_dir, context)


@contextlib.contextmanager
def claimed(
    job: Job, patience_seconds: float, context: Context, is_of_several: bool = False
) -> Iterator[None]:
    """Be the one that runs the job. The kernel drops the claim when its holder dies. ``is_of_several``: see ``claim``."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(claim(job.out_dir, is_of_several=is_of_several))
        except StoreBusy as busy:
            line = f"Step {job.step} waits for another run to end, and takes its result. {busy}"
            log.warning("%s", line)
            context.tell_line(line)
            _wait_for_claim(stack, job, patience_seconds, context, is_of_several)
        yield


def _wait_for_claim(
    stack: contextlib.ExitStack, job: Job, patience_seconds: float, context: Context, is_of_several: bool
) -> None:
    """A member of a sweep is a thread, which no signal reaches: whether its run is being stopped is asked."""
    until = time.monotonic() + patience_seconds
    while True:
        context.raise_if_stopped()
        try:
            return stack.enter_context(claim(job.out_dir, is_of_several=is_of_several))
        except StoreBusy:
            if time.monotonic() >= until:
                raise
        context.sleep(min(SECONDS_BETWEEN_LOOKS, max(0.0, until - time.monotonic())))


def _run(job: Job[R], launcher: Launcher, context: Context) -> R:
    machine, compute = launcher.machine_for(job.step, context), launcher.compute_for(job.step)
    check_devices(compute, machine)
    commands = tuple(
        step_command(job, compute, machine, launcher.python, node) for node in nodes_of(job, compute)
    )
    forget_what_was(job.out_dir)
    with step_log(job.out_dir, context) as lines:

        def before_start() -> None:
            with exclusive(job.out_dir, wait_seconds=SECONDS_FOR_A_DYING_STEP):
                _remove_report(job)
                job.write()
                write_json(job.out_dir / ACCELERATE_FILE, accelerate_settings(on_cpu=machine.num_gpus == 0))
                show_log(job.out_dir)
            for command in commands:
                lines.head(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(command.argv)}")

        context.tell_job(job, "started")
        try:
            ended = launcher.run(commands, context, lines.line, before_start)
        finally:
            context.tell_job(job, "ended")
    if ended.exit_code and not ended.unseen:
        raise _failure(job, ended, list(lines.last_lines))
    result = reusable_result(job) if ended.unseen else read_result(job)
    if result is None:
        raise _failure(job, ended, list(lines.last_lines))
    check_result(result, job)
    return result


def _remove_report(job: Job) -> None:
    try:
        (job.out_dir / ERROR_FILE).unlink(missing_ok=True)
    except OSError as error:  # a folder of this name
        raise from_os_error(error, f"removing an earlier {ERROR_FILE}") from error


def reusable_result(job: Job[R]) -> R | None:
    """Return the job's earlier result if its files are all there and undamaged; a damaged one is set aside and made
    again.
    """
    result = read_result(job)
    if result is None:
        return None
    try:
        os.utime(job.out_dir)  # a collection of garbage goes by the time of the last use
        result = in_this_store(result, job.out_dir)
        check_result(result, job)
        return result
    except StoreError as error:
        log.warning("The stored result of %s is made again: %s", job.step, error.problem)
        with contextlib.suppress(FileNotFoundError):
            (job.out_dir / RESULT_FILE).unlink()
        return None


def _failure(job: Job, ended: Ended, last_lines: list[str]) -> PairlineError:
    """The error of a step that left no result: what it reported itself, or that it died without a word."""
    report = read_error(job)
    tail = "Its last lines:\n" + (
        "\n".join(f"  | {line}" for line in last_lines) or "  | (it printed nothing)"
    )
    if ended.out_of_memory and (
        report is None or report.kind == PairlineError.kind or ended.cause
    ):  # or what follows it
        error: PairlineError = OutOfMemory(
            f"Step {job.step} was killed by the kernel for lack of memory.",
            " ".join(filter(None, (ended.advice, _what_to_lower(job)))),
        )
    elif ended.cause:  # what the other nodes reported follows from it
        error = StepCrashed(f"Step {job.step}: {ended.cause} {tail}")
    elif report is not None:
        error = error_of_kind(report.kind)(report.message[:LONGEST_REPORT])
    else:
        code = ended.exit_code
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        error = StepCrashed(f"Step {job.step} {how} and left neither a result nor an error report. {tail}")
    error.add_note(f"{LOG_NOTE}{own_folder(job.out_dir) / LOG_FILE}")
    return error


def _what_to_lower(job: Job) -> str:
    if isinstance(job, TrainJob):
        return (
            "Lower train.tokens_per_forward or data.max_length_tokens, or turn on train.gradient_checkpointing; "
            "`pairline plan` estimates what a run needs."
        )
    return (
        "Lower the step's tokens_per_batch or data.max_length_tokens, or run it where there is more memory."
    )
