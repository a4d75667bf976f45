"""Whether what few runs need is installed where their steps run, asked before anything is fetched or booked."""

import subprocess

from dpo_core.contract.errors import ConfigError
from flows.settings.stage_config import StageConfig

LOOKED_SECONDS = 60  # an interpreter's start on a slow file system


def check_image_holds(config: StageConfig, software: str, suffix: str, needed_by: str) -> None:
    """Raise ``ConfigError`` where steps run in an image that Pairline builds of a variant without ``software``, which
    ``needed_by`` asks for; the variants that hold it end in ``suffix``."""
    variant = config.image.variant
    if config.image.use is None and not variant.endswith(suffix):
        raise ConfigError(
            f"{needed_by}, and the image of image.variant {variant} does not hold {software}.",
            f"Set image.variant to {variant.partition('-')[0]}{suffix}.",
        )


def answer_of(python: str, program: str) -> str | None:
    """Return what an interpreter prints when it runs ``program``; None if that fails. Raises ``ConfigError`` where there is
    no such interpreter."""
    try:
        ran = subprocess.run([python, "-c", program], capture_output=True, text=True, timeout=LOOKED_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{python}, which steps run in, cannot be started: {error}.") from error
    return None if ran.returncode else ran.stdout.strip()
