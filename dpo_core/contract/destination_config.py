"""Where results go: the store of a run's steps, and the place that the checkpoint is published at."""

from pathlib import Path

from pydantic import Field, model_validator

from dpo_core.contract.section import Section


class UploadConfig(Section):
    """Where the checkpoint goes. A local directory by default; nothing is published unless a repository is named."""

    repo_id: str | None = Field(None, description="Hub repository (org/name). Empty: a local directory.")
    directory: Path | None = Field(
        None, description="Local destination when no repo_id is given; empty: inside the store."
    )
    endpoint: str | None = Field(
        None,
        description="Address of a server that speaks the Hub's protocol. "
        "One without xet storage needs HF_HUB_DISABLE_XET=1 in the environment.",
    )
    private: bool = Field(True, description="Create the repository as private.")
    tag: str | None = Field(None, description="Tag set on the uploaded commit.")
    token_block: str | None = Field(
        None,
        description="Name of the Prefect Secret block with the token; empty: the "
        "HF_TOKEN environment variable.",
    )

    @model_validator(mode="after")
    def _one_destination(self) -> "UploadConfig":
        if self.repo_id and self.directory:
            raise ValueError("upload.repo_id and upload.directory exclude each other; give one destination")
        return self


class StoreConfig(Section):
    """Where everything is kept: content-addressed step results that runs share."""

    root: Path = Field(Path(".pairline"), description="Folder of the store.")
