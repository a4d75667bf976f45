"""The W&B key: from a Prefect Secret block by name, or from the environment, for the time of the training alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.tracking_config import WANDB_KEY, TrackingConfig
from tasks.hub.token import hidden_in_logs, load_secret
from tasks.launch.workplace import Workplace


@contextmanager
def with_tracker_key(place: Workplace, tracking: TrackingConfig) -> Iterator[Workplace]:
    """Yield the place with WANDB_API_KEY for the step that names it (``CommandSpec.secrets``) and no other, if tracking
    is online. Raises ``ConfigError`` if there is none."""
    if not tracking.is_online:
        yield place
        return
    block = tracking.wandb_key_block
    key = (
        load_secret(block, "tracking.wandb_key_block", WANDB_KEY)
        if block
        else place.context.secret(WANDB_KEY)
    )
    if not key:
        raise ConfigError(
            "tracking.wandb_mode is online, but there is no key. Store one in a Prefect Secret block and name "
            f"it in tracking.wandb_key_block, set {WANDB_KEY}, or set tracking.wandb_mode to offline."
        )
    with with_secret(place, WANDB_KEY, key) as its_place:
        yield its_place


@contextmanager
def with_secret(place: Workplace, name: str, value: str) -> Iterator[Workplace]:
    """Yield the place with a secret for the steps that name it, which no log record shows meanwhile."""
    with hidden_in_logs(value):
        yield replace(place, context=replace(place.context, secrets={**place.context.secrets, name: value}))
