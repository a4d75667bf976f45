"""An SFT checkpoint as it can be told of: found, checked, hashed where it lies, without a copy."""

from dataclasses import dataclass
from pathlib import Path

from dpo_core.contract.checkpoint_files import CONFIG, tokenizer_fingerprint, weights_fingerprint
from dpo_core.contract.config import CheckpointConfig
from dpo_core.contract.errors import CheckpointError
from tasks.checkpoint.own_files import read_json_file
from tasks.checkpoint.source import locate


@dataclass(frozen=True, slots=True)
class VerifiedCheckpoint:
    """A checkpoint whose files are whole. ``source`` is a Hub id or an absolute directory."""

    source: str
    revision: str | None
    weights_fingerprint: str
    tokenizer_fingerprint: str


def verify_checkpoint(config: CheckpointConfig, store_root: Path) -> VerifiedCheckpoint:
    """Check the checkpoint and take its fingerprints, the same that fetching it gives.

    Raises ``CheckpointError``, ``ConfigError``, ``RemoteError``.
    """
    config = config.model_copy(update={"tokenizer": None, "tokenizer_revision": None})  # that is the recipe's
    located = locate(config, store_root)
    if located.weights.kind != "safetensors":
        raise CheckpointError(
            f"{config.source} has its weights as {located.weights.kind}; an announced one must hold "
            "safetensors. Save it with save_pretrained, or start a run by hand, which converts "
            "it."
        )
    files = located.hashes(config)
    return VerifiedCheckpoint(
        source=config.source if located.revision else str(located.folder.resolve()),
        revision=located.revision,
        weights_fingerprint=weights_fingerprint(read_json_file(located.folder / CONFIG), files),
        tokenizer_fingerprint=tokenizer_fingerprint(files),
    )


def check_unchanged(found: VerifiedCheckpoint, weights: str, tokenizer: str) -> None:
    """Raise ``CheckpointError`` unless the fingerprints are those that were announced."""
    for what, got, expected in (
        ("weights", found.weights_fingerprint, weights),
        ("tokenizer", found.tokenizer_fingerprint, tokenizer),
    ):
        if got != expected:
            raise CheckpointError(
                f"{found.source} is not the checkpoint that was announced: its {what} have fingerprint "
                f"{got[:12]}, expected {expected[:12]}. It was changed since; announce it again."
            )
