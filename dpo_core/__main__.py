"""The program: ``accelerate launch -m dpo_core <step> --job job.json`` (or ``python -m dpo_core ...``).

Rank 0 alone holds the step's folder, writes ``result.json`` or ``error.json``, and prints progress. A result that is
already there for the same job is left alone and the program ends at once.

``--share I/N``: one of N jobs that do not know each other and fill a cache for the step that follows. It writes no result.
"""

import argparse
import ctypes
import errno
import importlib
import logging
import os
import signal
import sys
import time
from pathlib import Path
from types import ModuleType

from dpo_core.contract.environment import step_environment
from dpo_core.contract.errors import (
    ConfigError,
    OutOfMemory,
    PairlineError,
    StepCrashed,
    from_os_error,
    is_failed_compile,
    is_out_of_memory,
    is_peer_lost,
    is_port_taken,
)
from dpo_core.contract.importing import importing
from dpo_core.contract.job import Job
from dpo_core.contract.job_registry import JOBS, read_job
from dpo_core.contract.progress import Progress
from dpo_core.contract.results import ENVIRONMENT_FILE, ERROR_FILE, RESULT_FILE, read_result, report_error
from dpo_core.contract.store import exclusive, remove_unfinished, write_json
from dpo_core.contract.tracking_config import ask_for_no_reports
from dpo_core.library_noise import silence_libraries

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run_step(job: Job, progress: Progress) -> None:
    """Run the job's step in this process and write its result. Raises ``PairlineError`` and whatever the step raises."""
    started = time.monotonic()
    ask_for_no_reports()
    if progress.active:  # the only rank that writes outside the reference cache
        remove_unfinished(job.out_dir)
        (job.out_dir / ERROR_FILE).unlink(missing_ok=True)
    step = _step_of(job)
    if progress.active:
        write_json(job.out_dir / ENVIRONMENT_FILE, step_environment())
    result = step.run(job, progress)
    if progress.active:
        seconds = round(time.monotonic() - started, 3)
        write_json(job.out_dir / RESULT_FILE, result.model_copy(update={"seconds": seconds}))


def run_share(job: Job, share: tuple[int, int], progress: Progress) -> None:
    """Compute one share of what the step would; a result that is there makes it needless."""
    ask_for_no_reports()
    if read_result(job) is None:
        _step_of(job).run_share(job, *share, progress)


def _step_of(job: Job) -> ModuleType:
    with importing():
        return importlib.import_module(f"dpo_core.steps.{job.step}")


def as_share(text: str) -> tuple[int, int]:
    """Return I and N of ``I/N``, I from 0 on."""
    share, _, num_shares = text.partition("/")
    if not 0 <= int(share) < int(num_shares):
        raise ValueError(text)
    return int(share), int(num_shares)


def as_pairline_error(error: BaseException, step: str) -> PairlineError:
    """Find the place of any exception in the tree; what has none is ``internal``, a defect of ours."""
    if isinstance(error, PairlineError):
        return error
    if is_port_taken(error):
        return StepCrashed(
            f"The processes of step {step} could not meet, as their port is taken: {str(error)[:300]}",
            "The step is started again and takes another port.",
        )
    if isinstance(error, OSError) and error.errno is not None:
        return from_os_error(error, f"running step {step}")
    if "No space left on device" in str(
        error
    ):  # safetensors reports the operating system's error as its own type
        return from_os_error(OSError(errno.ENOSPC, str(error)), f"running step {step}")
    if is_out_of_memory(error):
        return OutOfMemory(
            f"Out of memory in step {step}, outside of a forward or backward: {str(error)[:200]}. Lower the "
            "step's tokens_per_batch or data.max_length_tokens, or share weights and optimizer out "
            "(compute.sharding)."
        )
    if is_failed_compile(error):
        return ConfigError(
            f"What train.attention flex_attention or train.compile_regions asks for does not compile: {str(error)[:500]}",
            "It needs a C compiler, Python's headers and a cache folder that programs may be loaded from (compute.env: "
            "TRITON_CACHE_DIR); or use train.attention sdpa and turn train.compile_regions off.",
        )
    if is_peer_lost(error):
        return StepCrashed(
            f"Another process of step {step} is gone: {str(error)[:300]}",
            "If it left no error of its own, it was killed. The step is started again and goes on from what it has kept.",
        )
    internal = PairlineError(f"{type(error).__name__}: {error}")
    internal.__cause__ = error
    return internal


def die_with_parent() -> None:
    """Be killed when the launching process ends, if the launcher asked for it.

    Between the orchestrator and this process stands `accelerate launch`; without this a killed orchestrator would
    leave a trainer running.
    """
    if os.environ.get("PAIRLINE_DIE_WITH_PARENT") == "1" and sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before we asked
            sys.exit(1)


def show_log() -> None:
    """Print this program's own log on stdout: rank 0's lines, of the other ranks warnings."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    own = logging.getLogger("dpo_core")
    own.addHandler(handler)
    own.setLevel(logging.INFO if int(os.environ.get("RANK", "0")) == 0 else logging.WARNING)


def main(argv: list[str] | None = None) -> int:
    """Run a step; return the exit code that ``dpo_core.contract.errors`` documents."""
    die_with_parent()
    silence_libraries()
    parser = argparse.ArgumentParser(prog="dpo_core", description=__doc__)
    parser.add_argument("step", choices=sorted(JOBS))
    parser.add_argument("--job", type=Path, required=True, help="path of job.json")
    parser.add_argument(
        "--share", type=as_share, metavar="I/N", help="compute this share of it; reference alone"
    )
    arguments = parser.parse_args(argv)
    try:
        job = read_job(arguments.job.resolve())
    except PairlineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if job.step != arguments.step:
        print(f"{arguments.job} is a job for step {job.step}, not {arguments.step}.", file=sys.stderr)
        return 2
    is_main = int(os.environ.get("RANK", "0")) == 0
    progress = Progress(job.step, active=is_main)
    try:
        if arguments.share:
            run_share(job, arguments.share, progress)
            return 0
        if not is_main:
            if read_result(job) is None:  # else rank 0 is not coming
                run_step(job, progress)
            return 0
        with exclusive(job.out_dir, wait_seconds=2):  # a collection of garbage holds it for a moment to look
            if read_result(job) is None:
                run_step(job, progress)
        return 0
    except Exception as error:
        pairline_error = as_pairline_error(error, job.step)
        report_error(job, pairline_error)
        return pairline_error.exit_code


if __name__ == "__main__":
    show_log()
    sys.exit(main())
