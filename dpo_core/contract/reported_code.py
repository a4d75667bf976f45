"""How a step ended, for whoever sees an exit code alone: `accelerate launch` ends with 1 whatever its ranks end with.

Standard library alone, as every container waits for it.
"""

import json
import os
import stat
from pathlib import Path

from dpo_core.contract.errors import error_of_kind

LARGEST_REPORT = 1 << 22


def report_of(argv: list[str]) -> Path | None:
    """Return where the step reports an error: beside the job that the command names."""
    return Path(argv[argv.index("--job") + 1]).parent / "error.json" if "--job" in argv[:-1] else None


def mark_of(report: Path | None) -> tuple[int, int] | None:
    """Return what tells one report from the next, None where there is none."""
    try:
        about = os.stat(report, follow_symlinks=False) if report is not None else None
    except OSError:
        return None
    return (about.st_ino, about.st_mtime_ns) if about is not None and stat.S_ISREG(about.st_mode) else None


def reported_code(report: Path | None, code: int, before: tuple[int, int] | None) -> int:
    """Return the exit code of the error that this start has reported, else ``code``."""
    if report is None or mark_of(report) in (None, before):
        return code
    try:
        with report.open() as file:
            kind = str(json.loads(file.read(LARGEST_REPORT))["kind"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return code
    return error_of_kind(kind).exit_code
