"""What each experiment tracker is started with, so that it writes below one folder of the training's and nowhere else.

Nothing of a tracker is imported unless it is chosen. All but W&B write files alone, without a network: a key that lies in
the home folder of whoever runs this sends nothing.
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


def name_of(job: TrainJob) -> str:
    """Return what a tracker is to call the run."""
    return job.tracking.run_name or job.fingerprint[:16]


def tags_of(job: TrainJob) -> list[str]:
    """Return the run's tags, its group among them: for trackers that know no groups."""
    return [*job.tracking.tags, *filter(None, [job.tracking.group])]


def flat(settings: Arguments, before: str = "") -> dict[str, str]:
    """Return nested settings as one level, ``loss.beta``, for trackers whose parameters are text."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        found |= flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: str(value)}
    return found


def _wandb(job: TrainJob, folder: Path, mode: str) -> Arguments:
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
        "name": name_of(job),
        "group": tracking.group,
        "config": settings_of(job) | more,
        "embed": False,
        "auto_log_gpu": False,
        "auto_log_cpu": False,
    }


def _clearml(job: TrainJob, folder: Path, _mode: str) -> Arguments:
    os.environ |= {"CLEARML_OFFLINE_MODE": "1", "CLEARML_CACHE_DIR": str(folder / "clearml")}
    return {
        "task_name": name_of(job),
        "tags": tags_of(job),
        "reuse_last_task_id": False,
        "auto_connect_arg_parser": False,
        "auto_connect_frameworks": False,
        "auto_resource_monitoring": False,
        "auto_connect_streams": False,
    }


def _comet(job: TrainJob, folder: Path, _mode: str) -> Arguments:
    from comet_ml import ExperimentConfig

    tracking = job.tracking
    (folder / "comet").mkdir()
    return {
        "online": False,
        "experiment_config": ExperimentConfig(
            offline_directory=str(folder / "comet"),
            name=name_of(job),
            tags=list(tracking.tags),
            display_summary_level=0,
            # What it would collect by itself: code, command line, output, the machine.
            log_code=False,
            log_graph=False,
            log_git_metadata=False,
            log_git_patch=False,
            log_env_details=False,
            parse_args=False,
            auto_output_logging="",
            auto_param_logging=False,
            auto_metric_logging=False,
            auto_log_co2=False,
        ),
    }


def _dvclive(_job: TrainJob, folder: Path, _mode: str) -> Arguments:
    """It looks for DVC's folder from where it is started upwards, and makes one in the Git repository there if it finds
    none: here it finds one, of no repository."""
    os.environ["DVC_STUDIO_OFFLINE"] = "true"
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = True\n    analytics = false\n")
    return {"dir": str(folder / "dvclive"), "save_dvc_exp": False, "dvcyaml": None, "report": None}


def _aim(job: TrainJob, _folder: Path, _mode: str) -> Arguments:
    """Its repository lies where accelerate's logging folder is."""
    return {"system_tracking_interval": None, "log_system_params": False, "capture_terminal_logs": False}


def _swanlab(job: TrainJob, folder: Path, _mode: str) -> Arguments:
    os.environ["SWANLAB_ROOT"] = str(folder / "swanlab-files")
    from swanlab import Settings

    tracking = job.tracking
    return {
        "mode": "offline",
        "log_dir": str(folder / "swanlab"),
        "name": name_of(job),
        "group": tracking.group,
        "tags": list(tracking.tags),
        "description": tracking.notes,
        "config": settings_of(job),
        # Its output is the step's progress, which a launcher reads.
        "settings": Settings(
            interactive=False,
            terminal=Settings.Terminal(proxy_type="none"),
            probe=Settings.Probe(hardware=False, requirements=False, git=False, monitor=False),
        ),
    }


STARTS: dict[str, Callable[[TrainJob, Path, str], Arguments]] = {
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
    "aim": _aim,
    "clearml": _clearml,
    "comet_ml": _comet,
    "dvclive": _dvclive,
    "swanlab": _swanlab,
}
