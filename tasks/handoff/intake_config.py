"""``IntakeConfig``: what the receiving side lets a hand-off do. Nothing that stands in a hand-off widens it."""

from typing import Annotated

from pydantic import Field, StringConstraints

from dpo_core.contract.quantities import GiB
from tasks.handoff.config import GrpoConfig

PublicKey = Annotated[str, StringConstraints(pattern=r"^ed25519:[A-Za-z0-9+/]{43}=$")]


class IntakeConfig(GrpoConfig):
    """The receiver's own settings. As they are, no code of a checkpoint runs, and a token goes to the own Hub alone."""

    endpoint: str | None = Field(
        None,
        description="Address of the Hub that checkpoints are fetched from; the token is sent "
        "to no other. Empty: HF_ENDPOINT, or the Hugging Face Hub.",
    )
    allow_remote_code: tuple[str, ...] = Field(
        (),
        description="Python files of a checkpoint that may be executed, by name "
        "(modeling_x.py) or by name and content (modeling_x.py@sha256:...). "
        "Read them first.",
    )
    max_download_gib: GiB = Field(
        1000.0,
        description="The most that is downloaded of a checkpoint; a larger one is refused before it begins.",
    )
    trusted_keys: tuple[PublicKey, ...] = Field(
        (),
        description="Public keys (ed25519:...) of the stages whose hand-offs "
        "are taken. Empty: anybody's, signed or not.",
    )
