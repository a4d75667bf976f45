"""The W&B key: from a Prefect Secret block by name, or from the environment, for the time of the training alone."""

from collections.abc import Iterator
from contextlib import contextmanager

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.tracking_config import WANDB_KEY, TrackingConfig
from tasks.hub.token import hidden_in_logs, load_secret
from tasks.launch.secrets import secret_value, value_of_secret


@contextmanager
def tracker_key(tracking: TrackingConfig) -> Iterator[None]:
    """Give the launcher WANDB_API_KEY inside the block, for the step that names it (``CommandSpec.secrets``) and no other.
    Raises ``ConfigError`` if online tracking has no key."""
    if not tracking.is_online:
        yield
        return
    block = tracking.wandb_key_block
    key = load_secret(block, "tracking.wandb_key_block", WANDB_KEY) if block else value_of_secret(WANDB_KEY)
    if not key:
        raise ConfigError("tracking.wandb_mode is online, but there is no key. Store one in a Prefect Secret block and name "
                          f"it in tracking.wandb_key_block, set {WANDB_KEY}, or set tracking.wandb_mode to offline.")
    with secret_value(WANDB_KEY, key), hidden_in_logs(key):
        yield
