"""Where a published checkpoint is: what `upload` returns, the hand-off tells and the receiving side opens."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from dpo_core.contract.section import Section


class UploadedCheckpoint(Section):
    """A checkpoint at its final place, pinned by an immutable revision."""

    kind: Literal["hub", "directory"]
    uri: str = Field(description="hf://org/name@commit, or file:///absolute/path.")
    revision: str = Field(
        description="The commit (40 hex digits), or for a directory the fingerprint of its files."
    )
    files: dict[str, str] = Field(description="Relative path -> sha256 of every published file.")
    repo_id: str | None = None
    endpoint: str | None = Field(None, description="The Hub's address if it is not the default.")
    directory: Path | None = None
    tag: str | None = None
    reused: bool = Field(False, description="It was there already; nothing was written.")
