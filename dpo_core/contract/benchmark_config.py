"""``BenchmarkConfig``: the section ``benchmarks`` of a recipe, tasks that both checkpoints are scored on."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dpo_core.contract.quantities import Count, LengthTokens
from dpo_core.contract.section import NotContent, Section

TaskName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\s/\\]+$")]
BatchSize = Count | Literal["auto"]
ScoringBackEnd = Literal["hf", "vllm"]


class BenchmarkConfig(Section):
    """Tasks of lm-evaluation-harness, on the SFT checkpoint and on the trained one (extra benchmarks). See
    docs/benchmarks.md."""

    tasks: tuple[TaskName, ...] = Field(
        (),
        description="Tasks or groups of lm-evaluation-harness by name, e.g. [ifeval, gsm8k], or of task_folders.",
    )
    task_folders: tuple[Path, ...] = Field(
        (),
        description="Folders with task definitions of your own (YAML, code and data). Relative data files are looked for in "
        "the folder.",
    )
    limit: Count | None = Field(None, description="Only the first so many documents of each task, to try it.")
    num_fewshot: int | None = Field(
        None, ge=0, le=1000, description="Examples before each question; empty: as each task says."
    )
    chat_template: bool = Field(
        True, description="Ask in the checkpoint's chat template, examples as turns of their own."
    )
    max_length_tokens: LengthTokens | None = Field(
        None,
        description="Longest request with its answer in tokens; longer ones lose their beginning. Empty: as the model "
        "takes, which needs much memory where its context is long.",
    )
    batch_size: Annotated[BatchSize, NotContent()] = Field(
        "auto", description="Requests of a forward; auto: as many as the memory holds."
    )

    back_end: ScoringBackEnd = Field(
        "hf",
        description="What answers: hf, transformers as in training, shared out among all processes; or vllm, where it is "
        "installed, on one accelerator. Their scores differ in the last digits, and are kept apart.",
    )

    @property
    def in_words(self) -> str:
        """What is asked of whom: "ifeval, gsm8k of the SFT checkpoint, and of the trained one"."""
        first = f", the first {self.limit:,} documents of each" if self.limit else ""
        engine = ", on vLLM" if self.back_end == "vllm" else ""
        return f"{', '.join(self.tasks)} of the SFT checkpoint (before training) and of the trained one{first}{engine}"

    @model_validator(mode="after")
    def _each_task_once(self) -> "BenchmarkConfig":
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError("benchmarks.tasks names a task twice; each is scored once")
        if self.task_folders and not self.tasks:
            raise ValueError(
                "benchmarks.task_folders is set and benchmarks.tasks is empty; name the tasks to be scored"
            )
        return self
