"""Publishing to a local directory: atomic, verified, and never over something else."""

import shutil
from pathlib import Path

from dpo_core.contract.errors import ConfigError, StoreError
from dpo_core.contract.jobs import ExportResult
from dpo_core.contract.store import fingerprint, hash_files, new_directory, verify_files, write_bytes
from tasks.publish.uploaded_checkpoint import UploadedCheckpoint


def content_revision(files: dict[str, str]) -> str:
    """Return the immutable revision of a directory: a fingerprint of its file names and contents."""
    return fingerprint(files)


def publish_directory(
    export: ExportResult,
    card: bytes,
    card_sha256: str,
    directory: Path | None,
    default_parent: Path,
    name: str,
) -> UploadedCheckpoint:
    """Copy the exported files and the card to ``directory``, or to ``<default_parent>/<name>-<revision>``.

    Raises ``ConfigError`` if the named directory holds something else; a copy that was damaged in the default place is
    made again.
    """
    published = {**export.files, "README.md": card_sha256}
    revision = content_revision(published)
    target = (directory or default_parent / f"{name}-{revision[:12]}").expanduser().absolute()
    place = UploadedCheckpoint(
        kind="directory", uri=target.as_uri(), revision=revision, files=published, directory=target
    )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        if target.is_dir() and hash_files(target) == published:
            return place.model_copy(update={"reused": True})
        if directory is not None:
            raise ConfigError(
                f"upload.directory {target} exists and holds something other than this checkpoint. A "
                "published checkpoint is never changed, as runs may be reading it: name another directory, "
                "or delete this one."
            )
    with new_directory(target) as aside:
        for file_name in export.files:
            _place(export.path / file_name, aside / file_name)
        write_bytes(aside / "README.md", card)
        verify_files(aside, published)
    return place


def _place(source: Path, target: Path) -> None:
    """Copy: a published file must not change with the store's own. Raises ``StoreError`` if the source is gone."""
    if not source.is_file():
        raise StoreError(f"{source} is missing. Delete {source.parent} to have it exported again.")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
