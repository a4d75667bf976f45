"""The steps before any model is loaded, a job with its result each: convert, fetch, mix."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from dpo_core.contract.amount import Amount
from dpo_core.contract.chat_templates import template_content
from dpo_core.contract.job import Job, Result
from dpo_core.contract.quality_config import QualityRules
from dpo_core.contract.refs import DatasetRef, Location, ResolvedEvaluationSet, ResolvedSource
from dpo_core.contract.section import ContentAs, NotContent, NotContentAt, Section


class ConvertResult(Result):
    path: Path
    files: dict[str, str]

    def file_sets(self) -> Iterator[tuple[Path, dict[str, str]]]:
        yield self.path, self.files


class ConvertJob(Job[ConvertResult]):
    """GGUF, or pickle weights allowed by name -> safetensors snapshot."""

    step = "convert"
    source_dir: Location
    source_sha256: str  # of the weight file(s) named below
    gguf_file: str | None = None
    pickle_files: tuple[str, ...] = ()

    def named_by_people(self) -> tuple[Path, ...]:
        return (self.source_dir,)


class DequantiseJob(Job[ConvertResult]):
    """Safetensors weights in 8-bit floats with scales -> a safetensors snapshot in float32."""

    step = "dequantise"
    source_dir: Location
    source_sha256: str  # of the weight files and of what lies beside them
    weight_files: tuple[str, ...]


class FetchResult(Result):
    rows_path: Path
    num_rows: int


class FetchJob(Job[FetchResult]):
    """A Hub data set at its commit -> its rows in the cache, where ``mix`` finds them without network or token."""

    VERSION = 6  # LAYOUT of dpo_core/data/sources.py: rows of another one are not found in the cache
    step = "fetch"
    source: ResolvedSource
    cache_dir: Location  # see MixJob

    def writes(self) -> tuple[Path, ...]:
        return (self.cache_dir,)

    @property
    def needs_network(self) -> bool:
        return True

    @property
    def secrets(self) -> tuple[str, ...]:
        return ("HF_TOKEN",)


class Finding(Section):
    """A row that a check of quality found, and what it is like."""

    reason: str
    row: int  # 0-based in its source
    like: str  # label of the source or the evaluation set that holds the other one
    like_row: int
    similarity: float  # 0 to 1
    text: str  # the beginning of the row's prompt
    like_text: str = ""  # the same of the other one
    is_dropped: bool


class SourceLedger(Section):
    """Where every row of one source went: ``rows_in = kept + sum(dropped.values())``."""

    label: str
    content: str
    format: dict[str, int]  # format name -> rows recognised as it
    available_rows: int  # rows in the split before selection
    rows_in: int  # rows selected by `amount` (upsampling counts a row each time), and `extra_pairs`
    kept: int
    truncated: int
    dropped: dict[str, int]  # reason -> rows
    offenders: dict[str, tuple[int, ...]]  # reason -> first row numbers (0-based in the source)
    left_out_in_part: int = 0  # kept rows with an answer of which the chat template leaves out a part
    left_out_rows: tuple[int, ...] = ()  # the first of them
    prompt_left_out: int = (
        0  # rows with a turn of the prompt that the chat template leaves out, wholly or in part
    )
    prompt_passed_by: int = (
        0  # kept rows with a column of what comes before the answers that says what does not stand there
    )
    prompt_passed_by_rows: tuple[int, ...] = ()  # the first of them
    prompt_repeated: int = 0  # kept rows of which both answers begin with what the turn before them says
    prompt_repeated_rows: tuple[int, ...] = ()  # the first of them
    unnamed_role: int = 0  # kept rows with a turn of a role that the chat template does not name
    unnamed_role_rows: tuple[int, ...] = ()  # the first of them
    replaced: int = 0  # kept rows with half a character, in whose place U+FFFD stands
    replaced_rows: tuple[int, ...] = ()  # the first of them
    warnings: tuple[str, ...] = ()  # what is worth a second look, in sentences
    # reason -> what was found, for template_error the template's own sentences
    details: dict[str, tuple[str, ...]] = {}
    longer_chosen: int = 0  # kept rows whose chosen side has more tokens than the rejected one
    longer_rejected: int = 0  # the other way round; rows with both sides cut to one length are neither
    counted: dict[str, int] = {}  # reason -> rows that a check of quality found, and that stay
    extra_pairs: int = 0  # pairs beyond the first that a row gave (pairs: all), which rows_in counts
    findings: tuple[Finding, ...] = ()  # the first rows that checks of quality found, dropped or not


class EvaluationOverlap(Section):
    """How much of an evaluation set stands in the prompts of the rows, before rows were dropped for it."""

    label: str
    instances: int
    too_short: int  # instances shorter than a run of words, which match nothing
    overlapping: int  # instances that a row overlaps with
    rows: int  # rows that overlap with it


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
    histograms: dict[
        Literal["prompt", "chosen", "rejected"], LengthHistogram
    ] = {}  # none in mixtures of version 1


class TextSpan(Section):
    """Consecutive tokens of a sequence as text, special tokens written out."""

    kind: Literal["prompt", "trained", "untrained"]  # prompt: before the first token that is trained
    text: str


class RowSample(Section):
    """A pair as the trainer sees it."""

    source: str
    chosen: tuple[TextSpan, ...]
    rejected: tuple[TextSpan, ...]


class MixResult(Result):
    data: DatasetRef
    train_rows: int
    held_out_rows: int
    held_out_checked: int | None = None  # of them, whose answers code can check; None in mixtures of before
    per_source: tuple[SourceLedger, ...]
    lengths: LengthStats
    chat_template_sha256: str
    template_date: str | None = None  # the day that the chat template writes, where it writes one
    warnings: tuple[str, ...] = ()  # of all sources, and of the chat template
    evaluation_sets: tuple[EvaluationOverlap, ...] = ()
    samples: tuple[RowSample, ...] = ()  # the first rows to train on

    def file_sets(self) -> Iterator[tuple[Path, dict[str, str]]]:
        yield self.data.path, self.data.files


class MixJob(Job[MixResult]):
    """Preference sets -> one tokenised, shuffled, split mixture with a ledger."""

    VERSION = 11  # what is passed by in any column, and answers that repeat the prompt, are counted
    step = "mix"
    sources: tuple[ResolvedSource, ...]
    tokenizer_path: Location
    tokenizer_fingerprint: str
    chat_template: Annotated[str | None, ContentAs(template_content)] = None  # a name, or its text
    add_bos: Annotated[bool, NotContentAt(False)] = False
    template_date: Annotated[str | None, NotContentAt(None)] = None  # the day for templates that write one
    held_out: Amount = "0.05"
    max_length_tokens: int = 2048
    when_too_long: Literal["truncate", "drop"] = "truncate"
    train_on: Literal["last_turn", "all_turns"] = "last_turn"
    # Of the content: a mixture that passed a wider bound is another.
    max_dropped_fraction: Annotated[float, NotContentAt(0.5)] = 0.5
    seed: int = 8
    num_workers: Annotated[int, NotContent()] = 2
    quality: Annotated[QualityRules, NotContentAt(QualityRules())] = QualityRules()
    evaluation_sets: Annotated[tuple[ResolvedEvaluationSet, ...], NotContentAt(())] = ()
    set_names: Annotated[
        tuple[str, ...], NotContentAt(())
    ] = ()  # evaluation.sets, a name a source: all is held out
    apart_from: Annotated[DatasetRef | None, NotContentAt(None)] = (
        None  # a mixture of such: its prompts are dropped
    )
    cache_dir: Location  # Arrow files of sources and Hub downloads

    def writes(self) -> tuple[Path, ...]:
        return (self.cache_dir,)

    def named_by_people(self) -> tuple[Path, ...]:
        return tuple(source.path for source in self.sources if source.path is not None)
