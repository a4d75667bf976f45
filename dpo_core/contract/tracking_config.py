"""Which experiment trackers a training writes to. Torch-free: the orchestrator checks it before anything is booked."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.section import Section

Tracker = Literal[
    "tensorboard", "wandb", "mlflow", "trackio", "aim", "clearml", "comet_ml", "dvclive", "swanlab"
]
IN_THE_EXTRA: tuple[Tracker, ...] = (
    "tensorboard",
    "wandb",
    "mlflow",
    "trackio",
)  # the lock files have no others
TRACKING_DIR = "tracking"  # below a training's folder, with the files of all
WANDB_ADDRESS_FILE = "wandb-address.txt"  # in it: of the run's page, where it is tracked online
WANDB_KEY = "WANDB_API_KEY"  # the variable that wandb itself reads
WANDB_KEY_FILE = "PAIRLINE_WANDB_KEY_FILE"  # names a file with the key, in a container

# Several tell their makers how they are used, unless they are asked not to.
NO_REPORTS = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "COMET_ERROR_TRACKING_ENABLE": "false",
    "DVC_NO_ANALYTICS": "true",
}


class TrackingConfig(Section):
    """Experiment trackers beside ``metrics.jsonl``. They see the same numbers under the same names."""

    trackers: tuple[Tracker, ...] = Field(
        (),
        description="tensorboard, wandb, mlflow, trackio (extra `trackers`); aim, clearml, comet_ml, dvclive, swanlab, "
        "installed by that name. Their files lie in the training's folder under tracking/. A training that is "
        "found done is not tracked again.",
    )
    project: str = Field(
        "pairline", min_length=1, pattern=r"^[^/\\#?%:\s]+$", description="Project in the tracker."
    )
    run_name: str | None = Field(
        None, max_length=256, description="Name of the run in the trackers; empty: they make one."
    )
    group: str | None = Field(
        None, max_length=256, description="What runs are shown together, as those of a sweep."
    )
    tags: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = Field(
        (), max_length=64, description="Words to find the run by."
    )
    notes: str | None = Field(
        None, max_length=5_000, description="What the run is for, in a sentence or more."
    )
    wandb_mode: Literal["offline", "online"] = Field(
        "offline",
        description="offline writes files that `wandb sync` sends "
        "later; online sends while it trains, and falls back to offline.",
    )
    wandb_entity: str | None = Field(
        None, description="Team or user in Weights & Biases; empty: the key's own."
    )
    wandb_key_block: str | None = Field(
        None,
        description="Name of the Prefect Secret block with the API key; empty: the "
        "WANDB_API_KEY environment variable. Only online mode needs it.",
    )

    @model_validator(mode="after")
    def _key_is_used(self) -> "TrackingConfig":
        if self.wandb_key_block and not self.is_online:
            raise ValueError(
                "tracking.wandb_key_block is set, but only wandb in online mode uses a key; set "
                "tracking.trackers to [wandb] and tracking.wandb_mode to online, or leave it empty"
            )
        return self

    @property
    def is_online(self) -> bool:
        """Whether the training talks to a server, for which it needs a key."""
        return "wandb" in self.trackers and self.wandb_mode == "online"


def ask_for_no_reports() -> None:
    """Have trackers not tell their makers how they are used, unless the environment says otherwise.

    To be called before one is imported: DeepSpeed imports MLflow wherever it is installed, whether a job is tracked or not.
    """
    for variable, value in NO_REPORTS.items():
        os.environ.setdefault(variable, value)


def check_trackers(config: TrackingConfig, missing: Sequence[str] | None = None) -> None:
    """Raise ``ConfigError`` if a chosen tracker is not installed: accelerate would leave it out silently. ``missing``: those
    that another Python lacks, where the training runs; by default this one is looked through."""
    if missing is None:
        missing = [name for name in config.trackers if find_spec(name) is None]
    if missing:
        others = [name for name in missing if name not in IN_THE_EXTRA]
        extra = ["'pairline[trackers]'"] if len(others) < len(missing) else []
        raise ConfigError(
            f"tracking.trackers names {', '.join(missing)}, not installed where the training runs. Install "
            f"it there with `pip install {' '.join([*extra, *others])}`, or leave it out of tracking.trackers."
        )
