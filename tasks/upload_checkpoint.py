"""Task: exported checkpoint -> a Hub repository or a local directory, verified file by file."""

import hashlib
from pathlib import Path

from huggingface_hub import HfApi
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from dpo_core.contract.destination_config import UploadConfig
from dpo_core.contract.jobs import ExportResult
from dpo_core.contract.store import exclusive, verify_files
from tasks.hub.errors import from_hub_error
from tasks.hub.token import hidden_in_logs
from tasks.publish.directory import publish_directory
from tasks.publish.hub import LocalFile, publish_hub
from tasks.publish.model_card import CardInputs, render_card
from tasks.publish.upload_rights import upload_token
from tasks.publish.uploaded_checkpoint import UploadedCheckpoint
from tasks.run.retry_policy import worth_a_retry

SECONDS_FOR_ANOTHER_RUN = 600.0


def to_hub(export: ExportResult, upload: UploadConfig, card: bytes, card_sha256: str) -> UploadedCheckpoint:
    """Publish to ``upload.repo_id``. Every failure comes out as an error of the tree, with the token cut out."""
    token = upload_token(upload)
    files = {name: LocalFile(export.path / name, sha256) for name, sha256 in export.files.items()}
    files["README.md"] = LocalFile(card, card_sha256)
    try:
        with hidden_in_logs(token):
            return publish_hub(
                HfApi(endpoint=upload.endpoint, token=token),
                upload,
                files,
                message=f"Upload checkpoint {export.fingerprint[:12]}",
            )
    except Exception as error:
        failure = from_hub_error(error, f"uploading to {upload.repo_id}", token)
    raise failure  # outside the handler: a chained exception would carry what was cut out


@task(
    name="upload checkpoint",
    retries=4,
    retry_delay_seconds=[10, 30, 90, 270],
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def upload_checkpoint(
    export: ExportResult, upload: UploadConfig, store_root: Path, card: CardInputs
) -> UploadedCheckpoint:
    """Publish the exported files and the model card; what is there already with the same content is left alone.

    Retried because servers fail for minutes at a time; a repeated upload sends only what is missing. Raises
    ``StoreError`` for a damaged export, ``ConfigError`` for refused access, ``RemoteError`` when the server fails.
    """
    verify_files(export.path, export.files)
    text = render_card(card).encode()
    card_sha256 = hashlib.sha256(text).hexdigest()
    if upload.repo_id:
        uploaded = to_hub(export, upload, text, card_sha256)
    else:
        published = store_root.resolve() / "published"
        with exclusive(published, wait_seconds=SECONDS_FOR_ANOTHER_RUN):
            uploaded = publish_directory(export, text, card_sha256, upload.directory, published, card.name)
    get_run_logger().info(
        "%s %s (%d files)",
        "Already published as" if uploaded.reused else "Published as",
        uploaded.uri,
        len(uploaded.files),
    )
    return uploaded
