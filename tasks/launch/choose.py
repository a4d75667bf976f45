"""``compute.launcher`` -> the launcher. The one place that knows them all."""

from dpo_core.config import ComputeConfig
from tasks.launch.launcher import Launcher
from tasks.launch.process import ProcessLauncher


def launcher_for(compute: ComputeConfig) -> Launcher:
    """The launcher that the recipe asks for."""
    launchers = {"process": ProcessLauncher}
    return launchers[compute.launcher](compute)
