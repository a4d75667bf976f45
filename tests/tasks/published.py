"""An export and its inputs, as the steps before the upload leave them."""

from pathlib import Path

from dpo_core.contract.jobs import ExportResult
from dpo_core.contract.refs import CheckpointRef
from dpo_core.contract.store import hash_files
from tasks.hand_off_rlvr import HandoffInputs
from tasks.publish.model_card import CardInputs
from tasks.publish.uploaded_checkpoint import UploadedCheckpoint


def export_of(folder: Path) -> ExportResult:
    """A checkpoint folder as the result of `export`."""
    return ExportResult(
        job_fingerprint="job",
        path=folder,
        files=hash_files(folder),
        fingerprint="weights",
        tokenizer_fingerprint="tokenizer",
    )


def parent_of(folder: Path) -> CheckpointRef:
    """The same folder as its own parent."""
    return CheckpointRef(
        path=folder,
        fingerprint="parent",
        tokenizer_fingerprint="tokenizer",
        source="org/sft",
        revision="c" * 40,
    )


def card_of(folder: Path, name: str = "tiny") -> CardInputs:
    """A card that tells little."""
    return CardInputs(
        name=name, parent=parent_of(folder), metrics_before={"loss": 0.7}, metrics_after={"loss": 0.5}
    )


def inputs_of(folder: Path, uploaded: UploadedCheckpoint) -> HandoffInputs:
    """What the hand-off starts from."""
    return HandoffInputs(
        name="tiny",
        uploaded=uploaded,
        export=export_of(folder),
        parent=parent_of(folder),
        data_fingerprint="data",
        reference_fingerprint="reference",
        metrics_before={"loss": 0.7},
        metrics_after={"loss": 0.5},
    )
