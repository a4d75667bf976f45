"""``HandoffConfig``: what stands in a hand-off beside the checkpoint, and who signs it."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from dpo_core.contract.quantities import LearningRate
from dpo_core.contract.section import NotContent, Section


class GrpoConfig(Section):
    """What stands in an open-instruct GRPO command beside the checkpoint."""

    grpo_dataset: str = Field(
        "allenai/RLVR-GSM-MATH-IF-Mixed-Constraints 1.0", description="Mixer list of the command."
    )
    grpo_beta: float = Field(0.01, ge=0, le=1_000_000, description="KL coefficient of the GRPO command.")
    grpo_learning_rate: LearningRate = Field(5e-7, description="Learning rate of the GRPO command.")


class HandoffConfig(GrpoConfig):
    """What the RLVR run gets told."""

    probe_prompt: str = Field(
        "What is the capital of France?",
        description="Answered by the checkpoint from its final place before the hand-off is written.",
    )
    signing_key_file: Annotated[Path | None, NotContent()] = Field(
        None,
        description="Ed25519 key (PEM) that only its owner can read, to sign the hand-off with. Made by `pairline "
        "signing-key`.",
    )
    signing_key_block: Annotated[str | None, NotContent()] = Field(
        None, description="Name of the Prefect Secret block with such a key, instead of a file."
    )

    @model_validator(mode="after")
    def _one_key(self) -> "HandoffConfig":
        if self.signing_key_file and self.signing_key_block:
            raise ValueError(
                "handoff.signing_key_file and handoff.signing_key_block exclude each other; give one key"
            )
        return self
