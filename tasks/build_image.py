"""Task: commit -> the trainer image that every step runs in; unchanged content is found, not built."""

from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from tasks.image.config import ImageConfig
from tasks.image.image_ref import ImageRef
from tasks.image.push import load_login
from tasks.image.trainer_image import trainer_image
from tasks.run.retry_policy import worth_a_retry


# Retried because engines restart, and indexes and registries fail for minutes at a time. What was built is found again.
@task(
    name="build image",
    retries=2,
    retry_delay_seconds=[10, 60],
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def build_image(config: ImageConfig, store_root: Path) -> tuple[ImageRef, Path]:
    """Build the image, or find it, and the folder with its record and its list of packages. The build's output is the
    task's log.
    """
    log = get_run_logger()
    image, record = trainer_image(config, store_root, load_login(config.registry_block), log.info)
    log.info(
        "Trainer image %s of commit %s%s, %.2f GB",
        image.reference,
        (image.commit or "unknown")[:12],
        " (dirty)" if image.dirty else "",
        image.size_bytes / 1e9,
    )
    return image, record
