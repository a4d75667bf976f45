"""A person's answer about a checkpoint, and where an approval is kept: by content, so that nothing is asked twice.

Rejections are in the run's folder alone: who starts a rejected run again asks again.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from dpo_core.contract.benchmarks import Benchmarks
from dpo_core.contract.errors import StoreError
from dpo_core.contract.jobs import EvaluateResult, ExportResult
from dpo_core.contract.judgement import JudgeFigures
from dpo_core.contract.regular_file import read_regular
from dpo_core.contract.section import Section
from dpo_core.contract.store import fingerprint, write_json
from tasks.gate.rules import GateCheck

APPROVAL_FILE = "approval.json"
LARGEST_APPROVAL_BYTES = 1 << 20
Verdict = Literal["approve", "reject"]


class Approval(Section):
    """Who decided what, when, where and why."""

    decision: Verdict
    name: str = Field(description="As the person gave it: Prefect's open-source server knows no users.")
    reason: str
    at: datetime
    asked_in: Literal["prefect", "terminal"]


class Release(Section):
    """Why a checkpoint may leave: the rules that it keeps, and who approved it where a person was asked."""

    checks: tuple[GateCheck, ...] = ()
    approval: Approval | None = None


def answered(decision: Verdict, name: str, reason: str, asked_in: Literal["prefect", "terminal"]) -> Approval:
    """Return an answer given now."""
    return Approval(
        decision=decision, name=name.strip(), reason=reason.strip(), at=datetime.now(UTC), asked_in=asked_in
    )


def approval_path(
    store_root: Path,
    export: ExportResult,
    evaluation: EvaluateResult,
    checks: Sequence[GateCheck],
    benchmarks: Benchmarks | None = None,
    judgement: JudgeFigures | None = None,
) -> Path:
    """Return where the approval of this checkpoint with this evaluation under these rules is kept."""
    content = fingerprint(
        {
            "export": export.fingerprint,
            "evaluation": evaluation.job_fingerprint,
            "checks": [check.model_dump() for check in checks],
            **({"benchmarks": benchmarks.model_dump()} if benchmarks else {}),
            **({"judgement": judgement.model_dump()} if judgement else {}),
        }
    )
    return store_root / "approvals" / content[:16] / APPROVAL_FILE


def read_approval(path: Path) -> Approval | None:
    """Return an earlier approval, if there is one. Raises ``StoreError`` for a file that cannot be read as one."""
    try:
        return Approval.model_validate_json(read_regular(path, LARGEST_APPROVAL_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is not an approval ({error}). Delete it to be asked again.") from error


def keep_approval(path: Path, approval: Approval) -> None:
    """Keep it for later runs of the same."""
    write_json(path, approval)


Ask = Callable[[str], Approval | None]
"""Gets the question as Markdown; gives the answer, or None where it can only say where to answer."""
