"""The settings of what is measured on held-out pairs and prompts."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dpo_core.contract.metric_names import ANSWERED, DIVERGENCE
from dpo_core.contract.quantities import Count, TokenBudget
from dpo_core.contract.section import NotContent, Section
from dpo_core.contract.source_config import DataSource
from dpo_core.contract.warning_signs import WarningBounds

SetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]


class HeldOutSet(DataSource):
    """A preference set that is measured and never trained on, with a name of its own."""

    name: SetName = Field(description="What its figures are called: held_out/<name>/rewards/accuracies, ...")


class EvaluationConfig(Section):
    """What is measured on the held-out pairs and prompts, before and after, and while training."""

    every: Annotated[Literal["epoch"] | Count | None, NotContent()] = Field(
        None,
        description="Also measure the held-out pairs while training: every N optimizer steps, or `epoch`: at the end of "
        "each. Takes one forward of each pair and changes no weight.",
    )

    every_minutes: Annotated[float | None, NotContent()] = Field(
        None,
        gt=0,
        le=1_000_000,
        description="Also once training has taken so long since the last of these evaluations, by the first process's "
        "clock, and at the end. Which steps that are depends on the machine, so it does not go with train.keep_best.",
    )
    answers_every: Annotated[Count | None, NotContent()] = Field(
        None,
        description="Also answer the held-out prompts (num_prompts) while training, before the first step, at every N-th of "
        "these evaluations (1: at each) and at the last: words, instructions kept, and with measure_kl the divergence. "
        "Takes far longer than a forward of each pair.",
    )
    num_prompts: int = Field(
        8, ge=0, le=10_000_000, description="Held-out prompts answered greedily by both models."
    )
    max_new_tokens: Count = Field(128, description="Longest answer in tokens.")
    measure_kl: bool = Field(
        False,
        description="Also sample two answers a prompt and measure the KL divergence from the "
        "reference on them. Takes about as long as the greedy answers, and loads both models again.",
    )
    num_samples_shown: Annotated[int, NotContent()] = Field(
        8, ge=0, le=1_000_000, description="Answers shown side by side in the report."
    )
    tokens_per_batch: Annotated[TokenBudget, NotContent()] = Field(
        2048, description="Token budget of a forward batch."
    )

    sets: Annotated[tuple[HeldOutSet, ...], NotContent()] = Field(
        (),
        description="Named preference sets that are measured beside the held-out pairs, while training (every) and after "
        "it, each by itself, e.g. [{name: safety, source: safety.jsonl}]. Rows of the mixture whose prompt stands in one "
        "of them are dropped (in_held_out_set). Other settings are those of data.sources.",
    )

    warnings: Annotated[WarningBounds, NotContent()] = Field(
        WarningBounds(), description="Signs that the policy gets worse though its accuracy rises."
    )

    @model_validator(mode="after")
    def _settings_agree(self) -> "EvaluationConfig":
        names = [one.name for one in self.sets]
        if self.answers_every and not (self.is_while_training and self.num_prompts):
            lacks = "num_prompts above 0" if self.is_while_training else "evaluation.every or every_minutes"
            raise ValueError(
                f"evaluation.answers_every answers prompts at evaluations while training; set {lacks}"
            )
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                f"evaluation.sets has the name {twice[0]} twice; its figures are told apart by it. Rename one"
            )
        return self

    @property
    def in_words(self) -> str:
        """Return what is measured before and after training, as a phrase."""
        names = ", ".join(one.name for one in self.sets)
        of_sets = f", and of the set{'' if len(self.sets) == 1 else 's'} {names}" if names else ""
        return f"held-out pairs and {self.num_prompts} greedy answers{of_sets}, before and after"

    @property
    def answers(self) -> dict:
        """What decides which prompts are answered while training, and what is found in the answers."""
        names = ("answers_every", "num_prompts", "max_new_tokens", "measure_kl")
        return {name: getattr(self, name) for name in names}

    @property
    def is_while_training(self) -> bool:
        """Whether anything is measured while training."""
        return self.every is not None or self.every_minutes is not None

    @property
    def cadence(self) -> str:
        """Return when that is, as a phrase."""
        parts = []
        if self.every is not None:
            parts.append(
                "epoch" if self.every == "epoch" else "step" if self.every == 1 else f"{self.every} steps"
            )
        if self.every_minutes is not None:
            parts.append(f"{self.every_minutes:g} minutes of training")
        return " and ".join(f"every {part}" for part in parts)

    @property
    def answered(self) -> tuple[str, ...]:
        """Metrics of answers while training."""
        return (*ANSWERED, *(DIVERGENCE if self.measure_kl else ())) if self.answers_every else ()

    @property
    def measures_kl_while_training(self) -> bool:
        """Whether the divergence from the reference is asked for while training."""
        return bool(self.answers_every and self.measure_kl)
