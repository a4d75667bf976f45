"""What each experiment tracker is started with, so that it writes below one folder of the training's and nowhere else.

Nothing of a tracker is imported unless it is chosen.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.section import content_of
from dpo_core.contract.tracking_config import WANDB_KEY, WANDB_KEY_FILE

Arguments = dict[str, Any]
# wandb writes beside the run, too: all of it stays in the job's folder, which is what a container may write to.
WANDB_FOLDERS = {
    "WANDB_CACHE_DIR": "cache",
    "WANDB_CONFIG_DIR": "config",
    "WANDB_DATA_DIR": "data",
    "WANDB_ARTIFACT_DIR": "artifacts",
}


def starts_of(job: TrainJob, folder: Path, wandb_mode: str) -> dict[str, Arguments]:
    """Return tracker -> arguments of its start, for those that the job names; and set the variables that they read."""
    return {
        name: start(job, folder, wandb_mode)
        for name, start in STARTS.items()
        if name in job.tracking.trackers
    }


def settings_of(job: TrainJob) -> Arguments:
    """Return what the training was asked to do: the job's content, without paths."""
    sections = {
        name: content_of(getattr(job, name)) for name in ("loss", "optim", "train", "adapter", "batch")
    }
    return {
        **sections,
        "data": job.data.fingerprint,
        "checkpoint": job.checkpoint.fingerprint,
        "fingerprint": job.fingerprint,
    }


def flat(settings: Arguments, before: str = "") -> dict[str, str]:
    """Return nested settings as one level, ``loss.beta``, for trackers whose parameters are text."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        found |= flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: str(value)}
    return found


def _wandb(job: TrainJob, folder: Path, mode: str) -> Arguments:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    for variable, name in WANDB_FOLDERS.items():
        os.environ[variable] = str(folder / "wandb-files" / name)
    if (key_file := Path(os.environ.get(WANDB_KEY_FILE, ""))).is_file():
        os.environ[WANDB_KEY] = key_file.read_text().strip()
    from wandb import Settings

    tracking = job.tracking
    # The id is the job's: a resumed training goes on in the same run.
    return {
        "mode": mode,
        "id": job.fingerprint[:16],
        "name": tracking.run_name,
        "group": tracking.group,
        "tags": tracking.tags or None,
        "notes": tracking.notes,
        "entity": tracking.wandb_entity,
        "dir": str(folder),
        "resume": "allow" if mode == "online" else None,
        "config": settings_of(job),
        "save_code": False,
        "settings": Settings(console="off", disable_git=True, disable_code=True, silent=True),
    }


def _mlflow(job: TrainJob, folder: Path, _mode: str) -> Arguments:
    """Files as `mlflow ui --backend-store-uri` and `mlflow migrate-filestore` read them; its database back end would need
    packages that no trainer has."""
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    os.environ["MLFLOW_TRACKING_URI"] = (folder / "mlruns").as_uri()
    tracking = job.tracking
    group = {"group": tracking.group} if tracking.group else {}
    return {
        "run_name": tracking.run_name,
        "description": tracking.notes,
        "tags": {"fingerprint": job.fingerprint, **group, **dict.fromkeys(tracking.tags, "true")},
    }


def _trackio(job: TrainJob, folder: Path, _mode: str) -> Arguments:
    os.environ["TRACKIO_DIR"] = str(folder / "trackio")
    tracking = job.tracking
    more = {"tags": list(tracking.tags), "notes": tracking.notes} if tracking.tags or tracking.notes else {}
    return {
        "name": tracking.run_name or job.fingerprint[:16],
        "group": tracking.group,
        "config": settings_of(job) | more,
        "embed": False,
        "auto_log_gpu": False,
        "auto_log_cpu": False,
    }


STARTS: dict[str, Callable[[TrainJob, Path, str], Arguments]] = {
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
