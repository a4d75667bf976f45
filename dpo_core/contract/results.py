"""What steps leave behind: ``result.json`` or ``error.json`` in the job's folder, frozen and torch-free.

A step succeeded when it exited with 0 **and** ``result.json`` carries the job's fingerprint; see ``dpo_core.contract.job``.
"""

import sys
import traceback

from pydantic import ValidationError

from dpo_core.contract.errors import PairlineError, StoreBusy, StoreError
from dpo_core.contract.job import Job, R
from dpo_core.contract.regular_file import read_regular
from dpo_core.contract.section import Section
from dpo_core.contract.store import write_json
from dpo_core.contract.visible import visible

RESULT_FILE, ERROR_FILE, ENVIRONMENT_FILE = "result.json", "error.json", "environment.json"
LARGEST_RESULT_BYTES, LARGEST_REPORT_BYTES = 64 << 20, 1 << 20  # a thousand long answers take 10 MB


class StepEnvironment(Section):
    """What a step ran on, as ``environment.json``: for the report, never part of a fingerprint."""

    python: str
    platform: str
    packages: dict[str, str]  # distribution name -> version, of those that are installed
    device: str  # the accelerator's or the processor's name
    num_processes: int
    threads_per_process: int | None  # OMP_NUM_THREADS


class ErrorReport(Section):
    """What a failed step leaves as ``error.json``."""

    kind: str
    message: str
    step: str
    job_fingerprint: str
    details: dict[str, str | int | float] = {}
    traceback: str = ""  # for the log file; a person is shown the message


def read_result(job: Job[R]) -> R | None:
    """Return the result of ``job`` if ``out_dir`` holds one with the job's fingerprint, else None.

    Raises ``StoreError`` when a ``result.json`` is there but cannot be read, is no plain file, or too long.
    """
    path = job.out_dir / RESULT_FILE
    try:
        result = job.result_class().model_validate_json(read_regular(path, LARGEST_RESULT_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except StoreError as error:
        raise StoreError(
            f"{error} {path} cannot be believed. Delete {job.out_dir} to have the step run again."
        ) from error
    except (OSError, ValueError) as error:
        what = in_short(error)
        raise StoreError(
            f"{path} cannot be read ({what}). Delete {job.out_dir} to have the step run again."
        ) from error
    return result if result.job_fingerprint == job.fingerprint else None


def read_error(job: Job) -> ErrorReport | None:
    """Return the error report in ``out_dir``, or None if there is none or it is of another job."""
    path = job.out_dir / ERROR_FILE
    try:
        report = ErrorReport.model_validate_json(read_regular(path, LARGEST_REPORT_BYTES))
    except (OSError, ValueError):  # StoreError is a ValueError
        return None
    return report if report.job_fingerprint == job.fingerprint else None


def in_short(error: Exception) -> str:
    """Return what is wrong with a file, without what stands in it: that is a step's, and may be long."""
    if not isinstance(error, ValidationError):
        return str(error)
    first, count = error.errors(include_input=False, include_url=False)[0], error.error_count()
    place = ".".join(map(str, first["loc"]))[:100]
    return f"{place or 'the whole'}: {first['msg'][:200]}" + (f", and {count - 1} more" if count > 1 else "")


def report_error(job: Job, error: PairlineError) -> None:
    """Write ``error.json``; a disk that refuses even that still leaves the message on stderr.

    The first rank to fail is the one that knows why: the others then fail on its silence. A folder that another live
    run holds is not written to.
    """
    trace = "".join(traceback.format_exception(error))
    report = ErrorReport(
        kind=error.kind, message=str(error), step=job.step, job_fingerprint=job.fingerprint, traceback=trace
    )
    print(visible(trace), file=sys.stderr)
    if isinstance(error, StoreBusy) or read_error(job) is not None:
        return
    try:
        write_json(job.out_dir / ERROR_FILE, report)
    except PairlineError as unwritable:
        print(f"error.json could not be written: {unwritable}", file=sys.stderr)
