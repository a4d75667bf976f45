"""The steps that work with a model, a job with its result each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from dpo_core.contract.back_ends import BACK_ENDS, Offload, ShardingKind
from dpo_core.contract.chat_templates import template_content
from dpo_core.contract.config import (
    FLEX,
    AdapterConfig,
    AttentionKernel,
    BaseWeights,
    ExportPrecision,
    ForwardLayout,
    OptimConfig,
    Precision,
    TrainConfig,
)
from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.float8 import NOT_CONTENT_BUT_IN_FLOAT8, Float8
from dpo_core.contract.job import Job, R, Result
from dpo_core.contract.keep_best import BestStep
from dpo_core.contract.loss_config import Loss
from dpo_core.contract.metric_names import set_and_metric
from dpo_core.contract.olmo_core import ComputedBy
from dpo_core.contract.refs import CheckpointRef, DatasetRef, HeldOutSets, Location, ReferenceRef
from dpo_core.contract.section import ContentAs, NotContent, NotContentAt, Section, content_of
from dpo_core.contract.tracking_config import WANDB_KEY, TrackingConfig


class Sharding(Section):
    """How the processes of a step share a model out (see ``ComputeConfig``).

    Not content: back ends differ in the order of sums, as numbers of processes do, and in bf16 in what is rounded before a
    sum; checkpoints hold whole tensors by name, so that a run may go on with another one.
    """

    kind: ShardingKind = "none"
    offload: Offload = "none"
    degree: int | None = None  # processes that share one copy out, others being replicas; None: all share one
    tensor_degree: int = 1  # neighbours that compute each forward together, with a part of every matrix each

    @property
    def splits_weights(self) -> bool:
        """Whether no process holds all weights, so that every forward is one of all processes together."""
        return BACK_ENDS[self.kind].splits_weights

    @property
    def may_copy_by_machine(self) -> bool:
        """Whether each machine may have a copy of its own in steps that score: nothing else says who shares with whom."""
        return self.kind == "fsdp2" and self.degree is None and self.offload == "none"

    @property
    def for_scoring(self) -> "Sharding":
        """The same for a step without an optimizer: what does not split weights has nothing to split."""
        return self if self.splits_weights else Sharding()


class ScoringJob(Job[R]):
    """One that computes log-probabilities and trains nothing: how it does so."""

    precision: Precision = "fp32"
    implementation: ComputedBy = "transformers"
    float8: Float8 = "none"
    forward: Annotated[ForwardLayout, NOT_CONTENT_BUT_IN_FLOAT8] = "packed"
    attention: Annotated[AttentionKernel, NotContent()] = "sdpa"
    sharding: Annotated[Sharding, NotContent()] = Sharding()

    @property
    def compiles(self) -> bool:
        return self.attention == FLEX


class ReferenceResult(Result):
    reference: ReferenceRef
    rows: int
    rows_computed: int  # the others were in the cache
    pairs_per_second: float
    forward: ForwardLayout  # the layout that was used, after the start-up comparison

    def file_sets(self) -> Iterator[tuple[Path, dict[str, str]]]:
        yield self.reference.path, self.reference.files


class ReferenceJob(ScoringJob[ReferenceResult]):
    """Sum of log-probabilities and token count per side of every row, both splits."""

    VERSION = 2  # tails beside sums
    step = "reference"
    is_parallel = True
    data: DatasetRef
    checkpoint: CheckpointRef
    base_weights: BaseWeights = "full"  # nf4: as QLoRA's policy holds them
    tokens_per_batch: Annotated[int, NotContent()] = 2048
    rows_per_shard: Annotated[int, NotContent()] = 1024
    cache_dir: Location  # of all mixtures: <cache_dir>/<model and numerics>/shard files keyed by row content

    def writes(self) -> tuple[Path, ...]:
        return (self.cache_dir,)

    @property
    def scores_content(self) -> dict:
        """What a row's values depend on besides the row: the job's content without the set, the weights by their own name.
        A new field that is content enters by itself, and with it the cache's key."""
        content = {
            name: value
            for name, value in content_of(self).items()
            if name not in ("step", "data", "checkpoint")
        }
        return content | {"version": self.VERSION, "checkpoint": self.checkpoint.fingerprint}


class BatchPlan(Section):
    """How a global batch is cut: processes (those that compute together are one) x per_device x accumulation."""

    global_pairs: int
    per_device_pairs: Annotated[int, NotContent()]
    accumulation: Annotated[int, NotContent()]
    num_processes: Annotated[int, NotContent()]


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
    base_check: dict[
        str, float
    ] = {}  # the same after training with the adapter switched off: the base is as it was
    adapter: AdapterConfig = AdapterConfig()
    trained_parameters: int = 0
    all_parameters: int = 0  # the adapter's included
    forward: ForwardLayout
    best: BestStep | None = None  # whose weights these are; None: the last step's

    def file_sets(self) -> Iterator[tuple[Path, dict[str, str]]]:
        yield self.weights_path, self.weights_sha256


class TrainJob(Job[TrainResult]):
    """Policy + reference log-probabilities + mixture -> trained weights."""

    step = "train"
    is_parallel = True
    data: DatasetRef
    checkpoint: CheckpointRef  # the policy's start
    reference: ReferenceRef | None = None  # None for losses without one
    reference_checkpoint: CheckpointRef | None = (
        None  # what computed `reference`; the step-0 guard recomputes rows
    )
    loss: Loss
    optim: OptimConfig
    train: TrainConfig
    adapter: AdapterConfig = AdapterConfig()
    batch: BatchPlan
    sharding: Annotated[Sharding, NotContent()] = Sharding()
    tracking: Annotated[TrackingConfig, NotContent()] = TrackingConfig()
    evaluation: Annotated[EvaluationConfig, NotContent()] = EvaluationConfig()  # while it trains
    sets: Annotated[HeldOutSets | None, NotContent()] = None
    chat_template: Annotated[str | None, NotContent()] = (
        None  # chosen instead of the checkpoint's: ends answers
    )

    @property
    def content(self) -> dict:
        """Where the best evaluation decides which weights come out, what is evaluated is content, too."""
        content = super().content
        if not (keep := self.train.keep_best):
            return content
        of_set, metric = set_and_metric(keep.metric)
        sets = {"sets": content_of(self.sets)} if self.sets and of_set else {}
        answers = self.evaluation.answers if metric in self.evaluation.answered else {}
        return content | {"evaluation": {"every": self.evaluation.every, **answers}} | sets

    @property
    def compiles(self) -> bool:
        return self.train.compiles

    @property
    def needs_network(self) -> bool:
        return self.tracking.is_online

    @property
    def secrets(self) -> tuple[str, ...]:
        return (WANDB_KEY,) if self.tracking.is_online else ()


class ExportResult(Result):
    path: Path
    adapter_path: Path | None = None  # the adapter by itself, a folder in peft's format inside ``path``
    files: dict[str, str]
    fingerprint: str
    tokenizer_fingerprint: str

    def file_sets(self) -> Iterator[tuple[Path, dict[str, str]]]:
        yield self.path, self.files


class ExportJob(Job[ExportResult]):
    """Trained weights + the parent's tokenizer -> a folder that stock transformers loads."""

    step = "export"
    weights_path: (
        Location  # folder with model.safetensors, from TrainResult: all weights, or the adapter's alone
    )
    weights_fingerprint: str
    checkpoint: CheckpointRef  # config, tokenizer and template come from here, and the weights that an adapter changes
    adapter: AdapterConfig = AdapterConfig()
    chat_template: Annotated[str | None, ContentAs(template_content)] = None  # a name, or its text
    add_bos: Annotated[bool, NotContentAt(False)] = False
    precision: ExportPrecision = "bf16"  # number format of the exported weights


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
    set_answers: dict[str, tuple[AnswerPair, ...]] = {}  # by the name of the set


class EvaluateJob(ScoringJob[EvaluateResult]):
    """Held-out metrics and greedy answers, before and after."""

    step = "evaluate"
    VERSION = 8  # sentences end behind closing quotes and emphasis, not behind abbreviations
    is_parallel = True
    data: DatasetRef
    reference: ReferenceRef | None = None
    reference_checkpoint: CheckpointRef | None = None  # what computed `reference`
    sets: Annotated[HeldOutSets | None, NotContentAt(None)] = None
    before: CheckpointRef
    after: CheckpointRef
    loss: Loss
    evaluation: EvaluationConfig


class AnswerResult(Result):
    answers: tuple[str, ...]
    pad_token_id: int | None
    eos_token_ids: tuple[int, ...]
    vocab_size: int  # rows of the embedding
    num_parameters: int
    pad_token: str | None = None
    tokenizer_size: int = 0  # tokens that the tokenizer can produce
    prompts_ids: tuple[tuple[int, ...], ...] = ()  # the prompts as rendered by the chat template


class RehearseResult(Result):
    path: Path  # what an export writes, without the weights
    files: dict[str, str]
    loaded: AnswerResult  # what a load of it reports; it answers nothing

    def file_sets(self) -> Iterator[tuple[Path, dict[str, str]]]:
        yield self.path, self.files


class RehearseJob(Job[RehearseResult]):
    """Before anything is trained: write all of an export but its weights, and read it again."""

    VERSION = 3  # what passed before may hold weights that are no numbers, and settings to be put right
    step = "rehearse"
    checkpoint: CheckpointRef
    chat_template: Annotated[str | None, ContentAs(template_content)] = None  # a name, or its text
    add_bos: bool = False
    precision: ExportPrecision = "bf16"
    probe_prompt: str = "What is the capital of France?"


class AnswerJob(Job[AnswerResult]):
    """Load a checkpoint from its final place with stock transformers and answer prompts greedily."""

    step = "answer"
    checkpoint_path: Location
    files: dict[str, str]  # relative path -> sha256, verified before loading
    prompts: tuple[str, ...]
    max_new_tokens: int = 32
    allow_remote_code: bool = False
    is_one_on_card = True
