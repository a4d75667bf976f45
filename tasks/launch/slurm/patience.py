"""Questions that are asked again while Slurm does not answer."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from tasks.launch.context import Context
from tasks.launch.slurm.client import SlurmAway

log = logging.getLogger(__name__)
SECONDS_BETWEEN_TRIES = 5.0
T = TypeVar("T")


def patiently(ask: Callable[[], T], context: Context, patience_seconds: float) -> T:
    """Ask until Slurm answers. Raises ``SlurmAway`` after so long without, ``Stopped``."""
    until, warned = time.monotonic() + patience_seconds, False
    while True:
        try:
            return ask()
        except SlurmAway as away:
            if time.monotonic() > until:
                raise
            if not warned:
                log.warning("%s Waiting %.0f min for it.", away, patience_seconds / 60)
                warned = True
            context.raise_if_stopped()
            context.sleep(SECONDS_BETWEEN_TRIES)
