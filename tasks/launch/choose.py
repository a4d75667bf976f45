"""``compute.launcher`` -> the launcher. The one place that knows them all."""

from dpo_core.contract.compute_config import ComputeConfig
from dpo_core.contract.errors import ConfigError
from tasks.launch.launcher import Launcher
from tasks.launch.process import ProcessLauncher


def launcher_for(compute: ComputeConfig, image: str = "", python: str = "") -> Launcher:
    """The launcher that the recipe asks for; ``image`` (id or digest) and the interpreter in it for one with containers.

    Raises ``ConfigError`` if it needs an image and none is given, or an engine and there is none; ``RemoteError`` if the
    engine may be restarting.
    """
    if compute.launcher == "process":
        return ProcessLauncher(compute)
    if not image:
        raise ConfigError("compute.launcher is docker, but this flow has no trainer image. Set compute.launcher to process.")
    from tasks.launch.docker.engine import ContainerEngine  # docker-py takes a while to import
    from tasks.launch.docker.launcher import DockerLauncher

    ContainerEngine().check()
    return DockerLauncher(compute, image, python)
