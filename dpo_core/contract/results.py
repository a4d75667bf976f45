"""What steps leave behind: ``result.json`` or ``error.json`` in the job's folder, frozen and torch-free.

A step succeeded when it exited with 0 **and** ``result.json`` carries the job's fingerprint; see ``dpo_core.contract.jobs``.
"""

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from dpo_core.contract.config import AdapterConfig, ForwardLayout, Section
from dpo_core.contract.errors import StoreError
from dpo_core.contract.jobs import DatasetRef, Job, ReferenceRef
from dpo_core.contract.regular_file import read_regular

RESULT_FILE, ERROR_FILE, ENVIRONMENT_FILE = "result.json", "error.json", "environment.json"
LARGEST_RESULT_BYTES, LARGEST_REPORT_BYTES = 64 << 20, 1 << 20  # a thousand long answers take 10 MB


class Result(Section):
    """What a step leaves as ``result.json``."""

    job_fingerprint: str
    seconds: float = 0.0


class ConvertResult(Result):
    path: Path
    files: dict[str, str]


class FetchResult(Result):
    rows_path: Path
    num_rows: int


class SourceLedger(Section):
    """Where every row of one source went: ``rows_in = kept + sum(dropped.values())``."""

    label: str
    content: str
    format: dict[str, int]  # format name -> rows recognised as it
    available_rows: int  # rows in the split before selection
    rows_in: int  # rows selected by `amount` (upsampling counts a row each time)
    kept: int
    truncated: int
    dropped: dict[str, int]  # reason -> rows
    offenders: dict[str, tuple[int, ...]]  # reason -> first row numbers (0-based in the source)


class LengthHistogram(Section):
    """Token lengths of one part of the pairs. Bin ``i`` counts lengths from ``i * bin_tokens`` up to but without
    ``(i + 1) * bin_tokens``."""

    bin_tokens: int
    counts: tuple[int, ...]
    median: float
    p95: float  # 95 % are no longer
    longest: int


class LengthStats(Section):
    """Token lengths over the kept rows of both splits."""

    mean_prompt: float
    mean_chosen: float
    mean_rejected: float
    max_sequence: int
    total: int  # chosen and rejected sequences, prompt counted in both
    histograms: dict[Literal["prompt", "chosen", "rejected"], LengthHistogram] = {}  # none in mixtures of version 1


class MixResult(Result):
    data: DatasetRef
    train_rows: int
    held_out_rows: int
    per_source: tuple[SourceLedger, ...]
    lengths: LengthStats
    chat_template_sha256: str


class ReferenceResult(Result):
    reference: ReferenceRef
    rows: int
    rows_computed: int  # the others were in the cache
    pairs_per_second: float
    forward: ForwardLayout  # the layout that was used, after the start-up comparison


class TrainResult(Result):
    weights_path: Path
    weights_fingerprint: str
    weights_sha256: dict[str, str]
    steps: int
    pairs: int
    resumed_from_step: int | None
    metrics_path: Path  # metrics.jsonl, one line a step
    first_metrics: dict[str, float]
    last_metrics: dict[str, float]
    guard: dict[str, float]  # figures of the step-0 guard
    checks: dict[str, float] = {}  # seconds and figures of what the last start checked before its first step
    base_check: dict[str, float] = {}  # the same after training with the adapter switched off: the base is as it was
    adapter: AdapterConfig = AdapterConfig()
    trained_parameters: int = 0
    all_parameters: int = 0  # the adapter's included
    forward: ForwardLayout


class ExportResult(Result):
    path: Path
    adapter_path: Path | None = None  # the adapter by itself, a folder in peft's format inside ``path``
    files: dict[str, str]
    fingerprint: str
    tokenizer_fingerprint: str


class AnswerPair(Section):
    """One held-out prompt and its two greedy answers. ``*_passes`` is None where the row has no constraints."""

    prompt: str
    before: str
    after: str
    before_passes: bool | None = None
    after_passes: bool | None = None


class EvaluateResult(Result):
    before: dict[str, float]
    after: dict[str, float]
    num_pairs: int
    num_prompts: int
    answers: tuple[AnswerPair, ...]


class AnswerResult(Result):
    answers: tuple[str, ...]
    pad_token_id: int | None
    eos_token_ids: tuple[int, ...]
    vocab_size: int  # rows of the embedding
    num_parameters: int
    pad_token: str | None = None
    tokenizer_size: int = 0  # tokens that the tokenizer can produce
    prompts_ids: tuple[tuple[int, ...], ...] = ()  # the prompts as rendered by the chat template


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


RESULTS: dict[str, type[Result]] = {
    "convert": ConvertResult, "fetch": FetchResult, "mix": MixResult, "reference": ReferenceResult,
    "train": TrainResult, "export": ExportResult, "evaluate": EvaluateResult, "answer": AnswerResult,
}


def read_result(job: Job) -> Result | None:
    """The result of ``job`` if ``out_dir`` holds one with the job's fingerprint, else None.

    Raises ``StoreError`` when a ``result.json`` is there but cannot be read, is no plain file, or too long.
    """
    path = job.out_dir / RESULT_FILE
    try:
        result = RESULTS[job.step].model_validate_json(read_regular(path, LARGEST_RESULT_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except StoreError as error:
        raise StoreError(f"{error} {path} cannot be believed. Delete {job.out_dir} to have the step run again.") from error
    except (OSError, ValueError) as error:
        what = in_short(error)
        raise StoreError(f"{path} cannot be read ({what}). Delete {job.out_dir} to have the step run again.") from error
    return result if result.job_fingerprint == job.fingerprint else None


def read_error(job: Job) -> ErrorReport | None:
    """The error report in ``out_dir``, or None if there is none or it is of another job."""
    path = job.out_dir / ERROR_FILE
    try:
        report = ErrorReport.model_validate_json(read_regular(path, LARGEST_REPORT_BYTES))
    except (OSError, ValueError):  # StoreError is a ValueError
        return None
    return report if report.job_fingerprint == job.fingerprint else None


def in_short(error: Exception) -> str:
    """What is wrong with a file, without what stands in it: that is a step's, and may be long."""
    if not isinstance(error, ValidationError):
        return str(error)
    first, count = error.errors(include_input=False, include_url=False)[0], error.error_count()
    place = ".".join(map(str, first["loc"]))[:100]
    return f"{place or 'the whole'}: {first['msg'][:200]}" + (f", and {count - 1} more" if count > 1 else "")
