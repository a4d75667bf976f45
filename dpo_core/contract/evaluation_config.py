"""The settings of what is measured on held-out pairs and prompts."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

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
    def _names_tell_sets_apart(self) -> "EvaluationConfig":
        names = [one.name for one in self.sets]
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
    def while_training(self) -> dict:
        """What decides which evaluations there are while training, and what they find."""
        return {"every": self.every}
