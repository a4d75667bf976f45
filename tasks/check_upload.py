"""Task: try before the training whether its result can be uploaded."""

from collections.abc import Sequence

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from dpo_core.contract.destination_config import UploadConfig
from tasks.publish.directory_rights import check_directory
from tasks.publish.model_card import CardInputs
from tasks.publish.upload_rights import check_upload_rights
from tasks.run.retry_policy import worth_a_retry


# Retried because servers fail for minutes at a time; what is refused is not asked again.
@task(
    name="check upload",
    retries=3,
    retry_delay_seconds=[5, 30, 90],
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def check_upload(upload: UploadConfig, cards: Sequence[CardInputs]) -> None:
    """Ask the Hub for the rights that the upload needs, or try to write to the directory, where a checkpoint that is there
    must be one of ``cards``. Raises ``ConfigError`` with what
    to do, ``RemoteError``, ``DiskFull``."""
    if upload.directory is not None:
        check_directory(upload.directory, cards)
        get_run_logger().info("The result can be written to %s", upload.directory)
        return
    check_upload_rights(upload)
    get_run_logger().info("The token may upload to %s", upload.repo_id)
