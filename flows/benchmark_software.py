"""Whether benchmarks can be run where steps run, looked at before anything is fetched or booked."""

import subprocess

from dpo_core.contract.benchmarks import LM_EVAL_VERSION
from dpo_core.contract.errors import ConfigError
from flows.settings.stage_config import StageConfig
from tasks.benchmark import pinned_folder
from tasks.image.image_ref import WITH_BENCHMARKS
from tasks.launch.launcher import kind_of
from tasks.launch.process import step_python

SHOW_VERSION = "import importlib.metadata; print(importlib.metadata.version('lm-eval'))"
LOOKED_SECONDS = 60  # an interpreter's start on a slow file system


def check_benchmarks(config: StageConfig) -> None:
    """Raise ``ConfigError`` where tasks are named and lm-evaluation-harness, or a folder of tasks, is not there."""
    if not config.benchmarks.tasks:
        return
    for folder in config.benchmarks.task_folders:
        pinned_folder(folder)
    if kind_of(config.compute).runs_in_image:
        variant = config.image.variant
        if config.image.use is None and not variant.endswith(WITH_BENCHMARKS):
            raise ConfigError(
                f"benchmarks.tasks is set, and the image of image.variant {variant} does not hold lm-evaluation-harness.",
                f"Set image.variant to {variant.partition('-')[0]}{WITH_BENCHMARKS}.",
            )
    elif config.compute.launcher == "process":
        _check_python(step_python(config.compute))


def _check_python(python: str) -> None:
    try:
        shown = subprocess.run(
            [python, "-c", SHOW_VERSION], capture_output=True, text=True, timeout=LOOKED_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{python}, which steps run in, cannot be started: {error}.") from error
    found = "none" if shown.returncode else shown.stdout.strip()
    if found != LM_EVAL_VERSION:
        raise ConfigError(
            f"benchmarks.tasks is set, and {python}, which steps run in, has no lm-eval {LM_EVAL_VERSION} (found: {found}).",
            "`make setup EXTRAS=benchmarks` makes an environment that has it; set compute.python to "
            ".venv-benchmarks/bin/python.",
        )
