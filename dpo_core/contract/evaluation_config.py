"""The settings of what is measured on held-out pairs and prompts."""

from typing import Annotated, Literal

from pydantic import Field

from dpo_core.contract.quantities import Count, TokenBudget
from dpo_core.contract.section import NotContent, Section
from dpo_core.contract.warning_signs import WarningBounds


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

    warnings: Annotated[WarningBounds, NotContent()] = Field(
        WarningBounds(), description="Signs that the policy gets worse though its accuracy rises."
    )

    @property
    def while_training(self) -> dict:
        """What decides which evaluations there are while training, and what they find."""
        return {"every": self.every}
