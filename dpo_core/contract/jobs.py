"""The contract between orchestrator and trainer: a job in, a result out, both frozen and torch-free.

A job is written as ``job.json``; ``accelerate launch -m dpo_core <step> --job job.json`` leaves ``result.json`` or
``error.json`` beside it. A step succeeded when it exited with 0 **and** ``result.json`` carries the job's fingerprint.

A fingerprint is made of content: file hashes, row contents, numerics, the step's ``VERSION``. Fields marked
``NotContent`` (paths, names, batch shapes) stay out, so moving the store or changing a batch's shape computes nothing
again. (Another batch shape may change the last bits of a float; a fingerprint stands for the run's definition.)
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel

from dpo_core.contract.amount import Amount
from dpo_core.contract.config import (
    AdapterConfig,
    AttentionKernel,
    BaseWeights,
    EvaluationConfig,
    ExportPrecision,
    ForwardLayout,
    LossConfig,
    NotContent,
    Offload,
    OptimConfig,
    Precision,
    Section,
    ShardingKind,
    TrainConfig,
)
from dpo_core.contract.errors import StoreError
from dpo_core.contract.regular_file import read_regular
from dpo_core.contract.store import fingerprint, write_json
from dpo_core.contract.tracking_config import TrackingConfig

Location = Annotated[Path, NotContent()]
Label = Annotated[str, NotContent()]
FileHashes = Annotated[dict[str, str], NotContent()]  # path relative to the value's own -> sha256; verified when reused

JOB_FILE, LOG_FILE = "job.json", "log.txt"
LARGEST_JOB_BYTES = 16 << 20


def content_of(model: BaseModel) -> dict:
    """The part of a model that can change a step's output: its fields without those marked ``NotContent``."""

    def content(value: object) -> object:
        if isinstance(value, BaseModel):
            return content_of(value)
        return [content(item) for item in value] if isinstance(value, tuple | list) else value

    kept = {name: getattr(model, name) for name, field in type(model).model_fields.items()
            if not any(isinstance(mark, NotContent) for mark in field.metadata)}
    return {name: content(value) for name, value in kept.items()}


# ---------------------------------------------------------------------------------------------- values passed around

class CheckpointRef(Section):
    """A pinned local snapshot: safetensors weights, tokenizer, chat template; named by content."""

    path: Location
    fingerprint: str  # weights and architecture
    tokenizer_fingerprint: str  # tokenizer files and chat template
    source: Label  # what the user wrote: hub id, directory, package
    revision: Annotated[str | None, NotContent()] = None  # the commit, for a hub id
    files: FileHashes = {}
    allow_remote_code: bool = False


class DatasetRef(Section):
    """A tokenised mixture: folder with ``train/`` and ``held_out/``."""

    path: Location
    fingerprint: str
    files: FileHashes = {}


class ReferenceRef(Section):
    """Reference log-probabilities, row by row in the mixture's order."""

    path: Location
    fingerprint: str
    files: FileHashes = {}


class ResolvedSource(Section):
    """A data source whose content is pinned: files with hashes, or a Hub data set at a commit."""

    label: Label
    path: Annotated[Path | None, NotContent()] = None  # local file or directory
    hub_id: Annotated[str | None, NotContent()] = None
    commit: Annotated[str | None, NotContent()] = None
    content: str  # sha256 of the files, or hub id @ commit
    split: str = "train"
    subset: str | None = None
    amount: Amount = "1.0"
    columns: dict[str, str] = {}


class Sharding(Section):
    """How the processes of a step share a model out (see ``ComputeConfig``).

    Not content: back ends differ in the order of sums only, as numbers of processes do, and checkpoints hold whole
    tensors by name, so that a run may go on with another one.
    """

    kind: ShardingKind = "none"
    offload: Offload = "none"

    @property
    def splits_weights(self) -> bool:
        """Whether no process holds all weights, so that every forward is one of all processes together."""
        return self.kind in ("zero3", "fsdp2")

    @property
    def for_scoring(self) -> "Sharding":
        """The same for a step without an optimizer: what does not split weights has nothing to split."""
        return self if self.splits_weights else Sharding()


# --------------------------------------------------------------------------------------------------------------- jobs

class Job(Section):
    """One call of ``dpo_core``. ``out_dir`` holds ``job.json``, the step's files, and ``result.json`` or ``error.json``."""

    VERSION: ClassVar[int] = 1  # raised when the step's code changes what it writes
    step: str
    out_dir: Location

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the step, its version and the job's content."""
        return fingerprint({"version": self.VERSION, **content_of(self)})

    def write(self) -> Path:
        """Write ``job.json`` into ``out_dir`` and return its path."""
        write_json(self.out_dir / JOB_FILE, self)
        return self.out_dir / JOB_FILE


class ConvertJob(Job):
    """GGUF, or pickle weights allowed by name -> safetensors snapshot."""

    step: Literal["convert"] = "convert"
    source_dir: Location
    source_sha256: str  # of the weight file(s) named below
    gguf_file: str | None = None
    pickle_files: tuple[str, ...] = ()


class FetchJob(Job):
    """A Hub data set at its commit -> its rows in the cache, where ``mix`` finds them without network or token."""

    step: Literal["fetch"] = "fetch"
    source: ResolvedSource
    cache_dir: Location  # see MixJob


class MixJob(Job):
    """Preference sets -> one tokenised, shuffled, split mixture with a ledger."""

    VERSION: ClassVar[int] = 2  # length histograms; the mixture itself is that of version 1, and so is its fingerprint
    step: Literal["mix"] = "mix"
    sources: tuple[ResolvedSource, ...]
    tokenizer_path: Location
    tokenizer_fingerprint: str
    chat_template: str | None = None
    held_out: Amount = "0.05"
    max_length_tokens: int = 2048
    when_too_long: Literal["truncate", "drop"] = "truncate"
    train_on: Literal["last_turn", "all_turns"] = "last_turn"
    max_dropped_fraction: Annotated[float, NotContent()] = 0.5
    seed: int = 8
    num_workers: Annotated[int, NotContent()] = 2
    cache_dir: Location  # Arrow files of sources and Hub downloads


class ReferenceJob(Job):
    """Sum of log-probabilities and token count per side of every row, both splits."""

    VERSION: ClassVar[int] = 2  # tails beside sums
    step: Literal["reference"] = "reference"
    data: DatasetRef
    checkpoint: CheckpointRef
    base_weights: BaseWeights = "full"  # nf4: as QLoRA's policy holds them
    precision: Precision = "fp32"
    forward: Annotated[ForwardLayout, NotContent()] = "packed"
    attention: Annotated[AttentionKernel, NotContent()] = "sdpa"
    tokens_per_batch: Annotated[int, NotContent()] = 2048
    rows_per_shard: Annotated[int, NotContent()] = 1024
    sharding: Annotated[Sharding, NotContent()] = Sharding()
    cache_dir: Location  # shared by all mixtures: <cache_dir>/<model and numerics>/shard files keyed by row content

    @property
    def scores_content(self) -> dict:
        """What a row's values depend on besides the row: the job's content without the set, the weights by their own name.
        A new field that is content enters by itself, and with it the cache's key."""
        content = {name: value for name, value in content_of(self).items() if name not in ("step", "data", "checkpoint")}
        return content | {"version": self.VERSION, "checkpoint": self.checkpoint.fingerprint}


class BatchPlan(Section):
    """How a global batch is cut for the processes at hand: global = processes x per_device x accumulation."""

    global_pairs: int
    per_device_pairs: Annotated[int, NotContent()]
    accumulation: Annotated[int, NotContent()]
    num_processes: Annotated[int, NotContent()]


class TrainJob(Job):
    """Policy + reference log-probabilities + mixture -> trained weights."""

    step: Literal["train"] = "train"
    data: DatasetRef
    checkpoint: CheckpointRef  # the policy's start
    reference: ReferenceRef | None = None  # None for losses without one
    reference_checkpoint: CheckpointRef | None = None  # what computed `reference`; the step-0 guard recomputes rows
    loss: LossConfig
    optim: OptimConfig
    train: TrainConfig
    adapter: AdapterConfig = AdapterConfig()
    batch: BatchPlan
    sharding: Annotated[Sharding, NotContent()] = Sharding()
    tracking: Annotated[TrackingConfig, NotContent()] = TrackingConfig()


class ExportJob(Job):
    """Trained weights + the parent's tokenizer -> a folder that stock transformers loads."""

    step: Literal["export"] = "export"
    weights_path: Location  # folder with model.safetensors, from TrainResult: all weights, or the adapter's alone
    weights_fingerprint: str
    checkpoint: CheckpointRef  # config, tokenizer and template come from here, and the weights that an adapter changes
    adapter: AdapterConfig = AdapterConfig()
    chat_template: str | None = None
    precision: ExportPrecision = "bf16"  # number format of the exported weights


class EvaluateJob(Job):
    """Held-out metrics and greedy answers, before and after."""

    step: Literal["evaluate"] = "evaluate"
    data: DatasetRef
    reference: ReferenceRef | None = None
    reference_checkpoint: CheckpointRef | None = None  # what computed `reference`
    before: CheckpointRef
    after: CheckpointRef
    loss: LossConfig
    evaluation: EvaluationConfig
    precision: Precision = "fp32"
    forward: Annotated[ForwardLayout, NotContent()] = "packed"
    attention: Annotated[AttentionKernel, NotContent()] = "sdpa"
    sharding: Annotated[Sharding, NotContent()] = Sharding()


class AnswerJob(Job):
    """Load a checkpoint from its final place with stock transformers and answer prompts greedily."""

    step: Literal["answer"] = "answer"
    checkpoint_path: Location
    files: dict[str, str]  # relative path -> sha256, verified before loading
    prompts: tuple[str, ...]
    max_new_tokens: int = 32
    allow_remote_code: bool = False


JOBS: dict[str, type[Job]] = {cls.model_fields["step"].default: cls for cls in Job.__subclasses__()}


def read_job(path: Path) -> Job:
    """Read a ``job.json``. Raises ``StoreError`` if it is not one."""
    try:
        return _job_from_json(read_regular(path, LARGEST_JOB_BYTES))
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{path} is not a job file: {error}") from error


def _job_from_json(content: bytes) -> Job:
    class _Header(BaseModel):
        step: str

    return JOBS[_Header.model_validate_json(content).step].model_validate_json(content)
