"""What a person may set, one frozen section per concern. ``StageConfig`` (flows) is these sections side by side.

The UI form, the CLI's ``--set``, the recipes and the jobs derive from these models, so a name or a bound stands here
once. Torch-free. Defaults run on a laptop and publish nothing.
"""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dpo_core.contract.amount import Amount
from dpo_core.contract.chat_templates import MAX_TEMPLATE_CHARACTERS, TemplateChoice
from dpo_core.contract.float8 import Float8, why_not_float8
from dpo_core.contract.keep_best import KeepBest
from dpo_core.contract.objectives import REFUSED
from dpo_core.contract.olmo_core import ComputedBy
from dpo_core.contract.quantities import (
    Count,
    ForwardBudget,
    GiB,
    LearningRate,
    LengthTokens,
    NumEpochs,
    Seed,
    TokenBudget,
)
from dpo_core.contract.section import NotContent, NotContentAt, Section
from dpo_core.contract.source_config import DataSource

Precision = Literal["fp32", "bf16", "bf16_pure"]
ExportPrecision = Literal["fp32", "bf16"]
BaseWeights = Literal["full", "nf4"]
ForwardLayout = Literal["packed", "prefix_sharing", "padded"]
AttentionKernel = Literal["sdpa", "eager", "flex_attention", "flash_attention_2"]
FLEX: AttentionKernel = "flex_attention"  # compiled when it first runs


class CheckpointConfig(Section):
    """The SFT checkpoint that DPO starts from."""

    source: str = Field(
        description="Hub id (org/name), a local directory, or `package:NAME` for a directory of an installed Python package."
        " A directory may hold safetensors weights, 8-bit floats among them, or GGUF; GPTQ, AWQ, bitsandbytes are refused."
    )
    revision: str | None = Field(
        None, description="Hub branch, tag or commit; resolved to a commit once and recorded."
    )
    gguf_file: str | None = Field(
        None, description="File name of the GGUF inside the directory, if it holds several."
    )
    tokenizer: str | None = Field(
        None,
        description="Another tokenizer than the checkpoint's own: Hub id, directory or `package:NAME`. Its files, chat "
        "template and special tokens take the place of the checkpoint's, and are saved with the result.",
    )
    tokenizer_revision: str | None = Field(
        None,
        description="Hub branch, tag or commit of that tokenizer; resolved to a commit once and recorded.",
    )
    chat_template: TemplateChoice = Field(
        None,
        max_length=MAX_TEMPLATE_CHARACTERS,
        description="Use this chat template instead of the checkpoint's own: a name (docs/data.md), a file (.jinja, or "
        ".json with a `chat_template`; a relative path starts at the working directory), or the template's own text. It "
        "is also saved with the result.",
    )
    add_bos: bool = Field(
        False,
        description="Begin every conversation with the tokenizer's bos token; a template that writes it anyway is left "
        "as it is.",
    )
    allow_pickle: tuple[str, ...] = Field(
        (),
        description="Pickle weight files (e.g. pytorch_model.bin) that may be "
        "loaded, by file name. Pickle can run code; prefer safetensors.",
    )
    allow_remote_code: tuple[str, ...] = Field(
        (),
        description="Python files of the checkpoint that may be executed, "
        "by name (modeling_x.py) or by name and content (modeling_x.py@sha256:...). "
        "Read them first.",
    )
    max_download_gib: GiB = Field(
        1000.0, description="The most that is downloaded of a Hub id; more is refused before it begins."
    )

    @model_validator(mode="after")
    def _revision_is_of_a_tokenizer(self) -> "CheckpointConfig":
        if self.tokenizer_revision and not self.tokenizer:
            raise ValueError(
                "checkpoint.tokenizer_revision is set without checkpoint.tokenizer; name the tokenizer"
            )
        return self


class DataConfig(Section):
    """How preference sets are mixed and tokenised."""

    sources: tuple[DataSource, ...] = Field(min_length=1, description="Preference sets with their amounts.")
    held_out: Amount = Field(
        "0.05",
        description="Prompts kept for evaluation only: a proportion (0.05) or a count (64). "
        '"0" holds out none. No prompt stands on both sides.',
    )
    max_length_tokens: LengthTokens = Field(
        2048, description="Longest sequence (prompt and answer) in tokens."
    )
    when_too_long: Literal["truncate", "drop"] = Field(
        "truncate", description="Cut on the right, like the Tulu workflow, or drop the row."
    )
    template_date: date | None = Field(
        None,
        description="The day, e.g. 2026-01-31, for a chat template that writes today's date (`strftime_now`: Llama 3.2, "
        "SmolLM3, Granite). Empty: the day on which the run mixes its data, so a run of another day trains other tokens.",
    )
    train_on: Literal["last_turn", "all_turns"] = Field(
        "last_turn", description="Assistant turns that carry the loss."
    )
    max_dropped_fraction: float = Field(
        0.5, ge=0, le=1, description="More dropped rows than this is an error."
    )
    seed: Seed = Field(8, description="Shuffles the mixture and chooses the held-out prompts.")
    num_workers: int = Field(2, ge=1, le=4096, description="Processes that tokenise.")


class ReferenceConfig(Section):
    """The model that rewards are measured against. It stays as it is while the policy is trained."""

    source: str | None = Field(
        None, description="Another checkpoint as the reference; empty means the SFT checkpoint."
    )
    revision: str | None = Field(None, description="Hub branch, tag or commit of that checkpoint.")
    tokens_per_batch: TokenBudget = Field(
        2048, description="Token budget of a forward batch in the reference pass."
    )
    rows_per_shard: Count = Field(
        1024, description="Rows written at once; at most this much work is lost on a kill."
    )

    @model_validator(mode="before")
    @classmethod
    def _does_not_move(cls, values: Any) -> Any:
        """TR-DPO's settings by the names that people bring along."""
        moving = {"sync_ref_model", "ref_model_sync_steps", "ref_model_mixup_alpha"}
        if isinstance(values, dict) and (named := sorted(moving & set(values))):
            raise ValueError(f"{', '.join(named)}: {REFUSED['tr_dpo']}")
        return values


class AdapterConfig(Section):
    """What is trained: all weights, or a low-rank adapter (LoRA, arXiv 2106.09685) beside frozen ones."""

    kind: Literal["none", "lora", "qlora"] = Field(
        "none",
        description="none trains every weight; lora an adapter; qlora an "
        "adapter over 4-bit weights (CUDA only, extra cuda8bit).",
    )
    rank: int = Field(16, ge=1, le=1_000_000, description="Rank of each update.")
    alpha: float = Field(32.0, gt=0, le=1_000_000_000, description="An update is scaled by alpha / rank.")
    dropout: float = Field(
        0.0,
        ge=0,
        le=0,
        description="Always 0: policy and reference must agree on the same input, and a "
        "resumed run must give the same bits.",
    )
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        "all-linear",
        description="Linear layers that get an adapter: all but the output head, or names such as q_proj.",
    )

    @property
    def base_weights(self) -> BaseWeights:
        """Number format of the weights that are not trained, and so of the reference."""
        return "nf4" if self.kind == "qlora" else "full"


class OptimConfig(Section):
    """AdamW and its schedule."""

    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw", description="adamw_8bit keeps moments in 8 bits (CUDA only, extra cuda8bit)."
    )
    learning_rate: LearningRate = Field(5e-7, description="Peak learning rate.")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="Shape after the warm-up."
    )
    warmup_ratio: float = Field(
        0.1, ge=0, lt=1, description="Fraction of all steps with a rising learning rate."
    )
    weight_decay: float = Field(0.0, ge=0, le=1000, description="Decoupled; not applied to biases and norms.")
    beta1: float = Field(0.9, ge=0, lt=1, description="First moment decay.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Second moment decay.")
    epsilon: float = Field(1e-8, gt=0, le=1000, description="Added to the denominator.")
    max_grad_norm: float = Field(1.0, gt=0, le=1e15, description="Gradients are clipped to this global norm.")


class TrainConfig(Section):
    """Batches, epochs, numerics, checkpoints."""

    global_batch_pairs: Count = Field(8, description="Pairs per optimizer step over all processes.")
    per_device_batch_pairs: Annotated[Count | None, NotContent()] = Field(
        None,
        description="Pairs per forward and process; empty: the largest that fits the global batch, up to 4; on a card with "
        "tokens_per_forward auto no limit but that.",
    )
    tokens_per_forward: Annotated[ForwardBudget, NotContent()] = Field(
        "auto",
        description="Tokens of a forward, padding included; long pairs make it hold fewer pairs (one at least). auto: on a "
        "card as many as its memory holds, tried before the first step; on a CPU 2048.",
    )
    num_epochs: NumEpochs = Field(1, description="Passes over the mixture.")
    max_steps: int | None = Field(
        None, ge=1, le=1_000_000_000, description="Stop after this many optimizer steps."
    )
    precision: Precision = Field(
        "fp32",
        description="bf16 is autocast over fp32 weights (with sharding fsdp2: bf16 weights gathered from fp32 parts); "
        "bf16_pure computes with bf16 weights and keeps fp32 ones for the optimizer: less memory, a little faster.",
    )
    implementation: ComputedBy = Field(
        "transformers",
        description="What computes the model: transformers, or olmo_core (OLMo-core's Transformer: OLMo 2 and 3, Llama, "
        "Qwen 3; extra olmo). Checkpoints are the same. In bf16 they round differently, so each has reference values of its "
        "own.",
    )
    float8: Float8 = "none"
    forward: Annotated[ForwardLayout, NotContent()] = Field(
        "packed",
        description="packed computes a pair's prompt once and pads nothing; prefix_sharing is one row a pair; "
        "padded is the plain way. Same numbers; a model that cannot do the one asked for gets the next.",
    )
    attention: Annotated[AttentionKernel, NotContent()] = Field(
        "sdpa",
        description="Attention kernel; same numbers but for rounding. flex_attention and flash_attention_2 (padded "
        "forward, bf16 only) need a CUDA GPU.",
    )
    gradient_checkpointing: Annotated[bool, NotContent()] = Field(
        False, description="Recompute activations: less memory, about a third slower."
    )
    activation_budget_gib: Annotated[float, NotContent()] = Field(
        0.0,
        ge=0,
        le=10_000,
        description="With gradient_checkpointing: GiB of a forward's matrix products and attention outputs that are kept "
        "instead of being computed again. Where all of them fit, recomputing costs little time. Same numbers.",
    )
    compile_regions: Annotated[bool, NotContent()] = Field(
        False,
        description="On a card, compile norms and gated MLPs, which needs a C compiler and a minute at each start. Same "
        "numbers but for rounding.",
    )
    checkpoint_every: Annotated[
        Literal["epoch"] | Annotated[int, Field(ge=1, le=1_000_000_000)], NotContent()
    ] = Field(200, description="Optimizer steps between checkpoints, or `epoch`: at the end of each.")
    checkpoint_every_minutes: Annotated[float | None, NotContent()] = Field(
        10.0,
        gt=0,
        le=1_000_000,
        description="Also a checkpoint once so long has passed since the last one. Empty: by steps alone.",
    )
    keep_checkpoints: Annotated[Count, NotContent()] = Field(2, description="Newest checkpoints kept.")
    keep_best: Annotated[KeepBest | None, NotContentAt(None)] = Field(
        None,
        description="Also keep the checkpoint of the best evaluation while training, and export, judge and publish that. "
        "Needs evaluation.every. Empty: the last step's weights.",
    )
    export_precision: Annotated[ExportPrecision, NotContent()] = Field(
        "bf16", description="Number format of exported weights."
    )
    router_aux_loss_weight: float | None = Field(
        None,
        ge=0,
        le=1_000_000,
        description="Mixture-of-experts models: weight of the router's "
        "load-balancing loss. Empty: the model's own; 0: none.",
    )
    seed: Seed = Field(8, description="Order of the second and later epochs; start of an adapter.")

    @model_validator(mode="after")
    def _settings_agree(self) -> "TrainConfig":
        if self.activation_budget_gib and not self.gradient_checkpointing:
            raise ValueError(
                "train.activation_budget_gib says what train.gradient_checkpointing may keep, which is off, so that "
                "everything is kept. Turn it on, or leave the budget at 0"
            )
        if self.attention == "flash_attention_2" and self.precision == "fp32":
            raise ValueError(
                "train.attention flash_attention_2 computes in bf16 only; set train.precision to bf16, or "
                "train.attention to sdpa"
            )
        if reason := why_not_float8(self):
            raise ValueError(reason)
        return self

    @property
    def compiles(self) -> bool:
        """Whether some of what it computes with may be compiled at its start."""
        return self.compile_regions or self.attention == FLEX
