"""Settings that do not change while a run goes on, whatever becomes of the files that they name. Needs no Prefect."""

from typing import TypeVar

from flows.settings.stage_config import StageConfig
from tasks.checkpoint.chosen_template import with_template_read

C = TypeVar("C", bound=StageConfig)


def as_read(config: C) -> C:
    """Return the settings with the text of a chat template in the place of its file: what a run begins with is what it ends
    with, and what is written down of it. Raises ``ConfigError`` for a file that is none."""
    read = with_template_read(config.checkpoint)
    return config if read is config.checkpoint else config.model_copy(update={"checkpoint": read})
