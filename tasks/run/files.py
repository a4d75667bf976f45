"""Everything that is known of a run, read from its folder and the folders of its steps. Needs no server and starts nothing.

A run may be going on, failed, killed, or made by an older version: what is missing or cannot be read is None.
"""

import contextlib
import os
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from dpo_core.contract.answers_file import ANSWERS_FILE, AnswersOfStep, read_answers
from dpo_core.contract.benchmark_job import BenchmarkResult
from dpo_core.contract.benchmarks import BENCHMARKS_FILE, Benchmarks
from dpo_core.contract.bounded_json import bounded_json
from dpo_core.contract.data_jobs import MixResult
from dpo_core.contract.errors import HandoffRefused, StoreError
from dpo_core.contract.job import JOB_FILE, LOG_FILE, Job, Result
from dpo_core.contract.job_registry import JOBS, read_job
from dpo_core.contract.jobs import EvaluateResult, ExportResult, ReferenceResult, TrainResult
from dpo_core.contract.judge_job import JudgeJob, JudgeResult, content_of_answers
from dpo_core.contract.judgement import JudgeFigures
from dpo_core.contract.metrics_file import EVALUATIONS_FILE, METRICS_FILE, Metrics, read_metrics
from dpo_core.contract.progress import carries_event
from dpo_core.contract.regular_file import is_plain_file, open_regular, read_regular
from dpo_core.contract.results import (
    ENVIRONMENT_FILE,
    LARGEST_REPORT_BYTES,
    LARGEST_RESULT_BYTES,
    RESULT_FILE,
    StepEnvironment,
)
from tasks.gate.approval import APPROVAL_FILE, Approval
from tasks.gate.rules import GATE_FILE, GateCheck
from tasks.handoff.schema import RLVRHandoff, read_handoff
from tasks.launch.own_folder import own_folder
from tasks.run.environment import RunEnvironment
from tasks.run.folder import CONFIG_FILE, RUN_LOG_FILE, RunRecord, read_run
from tasks.run.followed import FollowedFiles
from tasks.run.step_metrics import FollowedSteps, StepMetrics
from tasks.sweep.outcomes import SWEEP_FILE, SweepOutcome

M = TypeVar("M", bound=BaseModel)
R = TypeVar("R", bound=Result)
NUM_LAST_LINES = 40
LOG_BYTES = 64_000  # of a log's end; enough for its last lines


@dataclass(frozen=True, slots=True)
class StepFiles:
    """A step of ``dpo_core`` as its folder tells it."""

    folder: Path
    job: Job | None
    result: Result | None
    environment: StepEnvironment | None


@dataclass(frozen=True, slots=True)
class RunFiles:
    """One run. ``steps``: by the name of the job, the last attempt at each."""

    folder: Path
    record: RunRecord
    config: dict[str, Any]
    environment: RunEnvironment | None
    steps: dict[str, StepFiles]
    handoff: RLVRHandoff | None
    handoff_path: Path | None
    gate: tuple[GateCheck, ...] = ()  # none if the run has no rule or did not come to it
    approval: Approval | None = None
    benchmarks: Benchmarks | None = None
    sets: MixResult | None = None  # of evaluation.sets
    sweep: SweepOutcome | None = None  # of its members, where the run is a sweep that has come to choose
    metrics: StepMetrics = field(default_factory=StepMetrics)
    evaluations: Metrics = field(default_factory=list)  # of the held-out pairs, while it trained
    kept_answers: tuple[AnswersOfStep, ...] = ()  # a few answers of the policy, while it trained

    @property
    def mixture(self) -> MixResult | None:
        return self._result("mix", MixResult)

    @property
    def reference(self) -> ReferenceResult | None:
        return self._result("reference", ReferenceResult)

    @property
    def trained(self) -> TrainResult | None:
        return self._result("train", TrainResult)

    @property
    def exported(self) -> ExportResult | None:
        return self._result("export", ExportResult)

    @property
    def evaluation(self) -> EvaluateResult | None:
        return self._result("evaluate", EvaluateResult)

    @property
    def judgement(self) -> JudgeFigures | None:
        result = self._result("judge", JudgeResult)
        return result.judgement if result else None

    @property
    def preferences(self) -> tuple[float | None, ...]:
        """What the judge thinks of each of the evaluation's answers, see ``Opinion``; none where it judged none of them."""
        step = self.steps.get("judge")
        if step is None or not isinstance(step.result, JudgeResult) or not isinstance(step.job, JudgeJob):
            return ()
        answers = self.evaluation.answers if self.evaluation else ()
        if (
            len(answers) != len(step.result.opinions)
            or content_of_answers(answers) != step.job.answers_content
        ):
            return ()
        return step.result.preferences

    @property
    def trained_scores(self) -> BenchmarkResult | None:
        """What the trained checkpoint scored; the job before it was the SFT checkpoint's."""
        return self._result("benchmark", BenchmarkResult) if self.benchmarks else None

    def _result(self, step: str, kind: type[R]) -> R | None:
        result = self.steps[step].result if step in self.steps else None
        return result if isinstance(result, kind) else None


def read_run_files(folder: Path, followed: FollowedFiles | None = None) -> RunFiles:
    """Return the run in ``folder``. ``followed``: of who reads it again and again; of the steps of its training only those
    that are new are read then. Raises ``StoreError`` if it holds no run."""
    folder = folder.resolve()
    record, store = read_run(folder), folder.parent.parent
    recorded = {job.step: Path(job.folder) for job in record.jobs}
    recorded |= {
        name: Path(path) for name, path in record.outputs.items() if name in JOBS and name not in recorded
    }
    steps = {
        name: read_step(name, moved(path, store), _end_without_result(record))
        for name, path in recorded.items()
    }
    handoff, path = _handoff(record, store)
    config = _json(folder / CONFIG_FILE)
    return RunFiles(
        folder=folder,
        record=record,
        config=config if isinstance(config, dict) else {},
        steps=steps,
        handoff=handoff,
        environment=_model(folder / ENVIRONMENT_FILE, RunEnvironment),
        handoff_path=path,
        gate=_gate(folder),
        approval=_model(folder / APPROVAL_FILE, Approval),
        benchmarks=_model(folder / BENCHMARKS_FILE, Benchmarks),
        sets=_sets(record, store),
        sweep=_model(folder / SWEEP_FILE, SweepOutcome),
        metrics=_steps(steps["train"].folder / METRICS_FILE, followed) if "train" in steps else StepMetrics(),
        evaluations=read_metrics(steps["train"].folder / EVALUATIONS_FILE) if "train" in steps else [],
        kept_answers=read_answers(steps["train"].folder / ANSWERS_FILE) if "train" in steps else (),
    )


def moved(path: Path, store: Path) -> Path:
    """Return where a path of the store is now: a store may have been moved or copied since the run."""
    return path if path.exists() else store.joinpath(*path.parts[-2:])


def _end_without_result(record: RunRecord) -> datetime | None:
    """When a run failed or was cancelled; a later run may have gone on in the same folders."""
    return record.ended if record.state in ("failed", "cancelled") else None


def read_step(name: str, folder: Path, until: datetime | None = None) -> StepFiles:
    """Return what the folder of a step holds, without a result that came after ``until``."""
    job, path = None, folder / RESULT_FILE
    with contextlib.suppress(StoreError):
        job = read_job(folder / JOB_FILE)
    is_later = until and path.is_file() and path.stat().st_mtime > until.timestamp()
    result = None if is_later else _model(path, JOBS[name].result_class())
    return StepFiles(
        folder, job, result, _model(folder / ENVIRONMENT_FILE, StepEnvironment, LARGEST_REPORT_BYTES)
    )


def last_lines(path: Path, count: int = NUM_LAST_LINES) -> list[str]:
    """Return the end of a log, without the lines that carry progress."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_BYTES))
            lines = file.read(LOG_BYTES).decode(errors="replace").splitlines()
    except (OSError, StoreError):
        return []
    return [line for line in lines if not carries_event(line)][-count:]


def failed_log(run: RunFiles) -> tuple[Path, list[str]]:
    """Return (path, last lines) of the log that tells most of how a run ended: its last step's if that left no result."""
    logs = [log_of(step.folder) for step in run.steps.values() if step.result is None]
    path = next((log for log in reversed(logs) if is_plain_file(log)), run.folder / RUN_LOG_FILE)
    return path, last_lines(path)


def log_of(folder: Path) -> Path:
    """Return the log of a step: the orchestrator's own; of an earlier version, in the step's folder."""
    own = own_folder(folder) / LOG_FILE
    return own if own.exists() else folder / LOG_FILE


def _handoff(record: RunRecord, store: Path) -> tuple[RLVRHandoff | None, Path | None]:
    if "handoff" not in record.outputs:
        return None, None
    recorded = Path(record.outputs["handoff"])
    path = recorded if recorded.exists() else store.joinpath(*recorded.parts[-3:])
    with contextlib.suppress(HandoffRefused):
        return read_handoff(path), path
    return None, path


def _gate(folder: Path) -> tuple[GateCheck, ...]:
    checks = _json(folder / GATE_FILE)
    with contextlib.suppress(ValidationError):
        return tuple(map(GateCheck.model_validate, checks)) if isinstance(checks, list) else ()
    return ()


def _sets(record: RunRecord, store: Path) -> MixResult | None:
    path = record.outputs.get("sets")
    return _model(moved(Path(path), store) / RESULT_FILE, MixResult) if path else None


def _steps(path: Path, followed: FollowedFiles | None) -> StepMetrics:
    return (followed or FollowedFiles()).look(FollowedSteps, path).metrics


def _json(path: Path) -> Any:
    try:
        return bounded_json(read_regular(path, LARGEST_RESULT_BYTES))
    except (OSError, ValueError, RecursionError):
        return None


def _model(path: Path, kind: type[M], max_bytes: int = LARGEST_RESULT_BYTES) -> M | None:
    try:
        return kind.model_validate_json(read_regular(path, max_bytes))
    except (OSError, ValueError):
        return None
