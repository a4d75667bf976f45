"""Where a hand-off says that its checkpoint is, and what may be opened there: decided before anything is, by the receiver.

A hand-off is a text that anybody may have written. Of its place only what has the form of one is kept; which Hub is asked,
and so which is told the token, stands in the receiver's settings.
"""

import re
from pathlib import Path

from huggingface_hub import constants

from dpo_core.contract.config import CheckpointConfig
from dpo_core.contract.errors import CheckpointError, HandoffRefused
from tasks.checkpoint.allowed_code import code_names, other_code
from tasks.checkpoint.files import checked_files
from tasks.handoff.intake_config import IntakeConfig
from tasks.handoff.rlvr_rules import check_names, check_template, failed_rules
from tasks.handoff.schema import RuleCheck
from tasks.publish.uploaded_checkpoint import UploadedCheckpoint

MAX_FILES = 10_000
PART = r"[A-Za-z0-9_][\w.+@ -]*"
FILE_NAME = re.compile(
    rf"{PART}(?:/{PART})*", re.ASCII
)  # no "..", no dot files, nothing that an option could be
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}")


def place_to_open(claimed: UploadedCheckpoint, settings: IntakeConfig) -> UploadedCheckpoint:
    """Return the place as the receiver opens it, made anew from what has the right form. Raises ``HandoffRefused``."""
    if len(claimed.files) > MAX_FILES:
        raise HandoffRefused(
            f"The hand-off lists {len(claimed.files)} files, at most {MAX_FILES} are looked at."
        )
    for name, sha256 in claimed.files.items():
        if not FILE_NAME.fullmatch(name) or not SHA256.fullmatch(sha256):
            raise HandoffRefused(
                f"The hand-off lists the file {name[:100]!r} with sha256 {sha256[:70]!r}, which no "
                "checkpoint has. Ask the DPO stage for a new hand-off."
            )
    refuse_failed(claimed.uri, check_names(claimed))
    code = sorted(
        name
        for name in claimed.files
        if name.endswith(".py") and name not in code_names(settings.allow_remote_code)
    )
    if code := code or other_code(settings.allow_remote_code, claimed.files):
        raise HandoffRefused(
            f"The checkpoint brings Python code: {', '.join(code[:5])}. Read it, and allow it by name, "
            "or by name@sha256:..., here: allow_remote_code (what the hand-off says of it does not count)."
        )
    if claimed.kind == "directory":
        if claimed.directory is None or not claimed.directory.is_absolute():
            raise HandoffRefused(
                f"The hand-off names the directory {claimed.directory}, expected an absolute path."
            )
        return UploadedCheckpoint(
            kind="directory",
            uri=claimed.directory.as_uri(),
            revision=claimed.revision,
            files=claimed.files,
            directory=claimed.directory,
        )
    _check_endpoint(claimed.endpoint, settings.endpoint)
    if not REPOSITORY.fullmatch(claimed.repo_id or ""):
        raise HandoffRefused(f"The hand-off names the repository {claimed.repo_id!r}, expected org/name.")
    return UploadedCheckpoint(
        kind="hub",
        uri=f"hf://{claimed.repo_id}@{claimed.revision}",
        revision=claimed.revision,
        files=claimed.files,
        repo_id=claimed.repo_id,
        endpoint=settings.endpoint,
    )


def _check_endpoint(claimed: str | None, own: str | None) -> None:
    def plain(endpoint: str) -> str:
        return endpoint.rstrip("/").lower()

    expected = own or constants.ENDPOINT
    if claimed is not None and plain(claimed) != plain(expected):
        raise HandoffRefused(
            f"The hand-off's checkpoint is on {claimed}, and hand-offs are taken from {expected} here, "
            "where alone the token goes. If you know that server, set endpoint to it (pairline intake "
            "--endpoint)."
        )


def check_before_load(folder: Path, place: UploadedCheckpoint, settings: IntakeConfig) -> None:
    """Check the rules that files can break without being loaded: template, configuration, code, headers of the weights.

    Raises ``HandoffRefused``.
    """
    weights = tuple(sorted(name for name in place.files if "/" not in name and name.endswith(".safetensors")))
    try:
        refuse_failed(place.uri, [check_template(folder)])
        checked_files(
            folder, weights, CheckpointConfig(source=place.uri, allow_remote_code=settings.allow_remote_code)
        )
    except CheckpointError as error:
        raise HandoffRefused(f"{place.uri} was not loaded: {error}") from error


def refuse_failed(uri: str, rules: list[RuleCheck] | tuple[RuleCheck, ...]) -> None:
    """Raise ``HandoffRefused`` if a rule fails."""
    if failed := failed_rules(tuple(rules)):
        raise HandoffRefused(
            f"{uri} cannot start an RLVR run: {failed}. Ask the DPO stage for a new hand-off."
        )
