"""The launchers: a name, a class and, where it has settings of its own, a section. The one place that knows them all.

A row imports its class when it is asked for: docker-py takes a fifth of a second, which `pairline --help` need not wait.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from dpo_core.contract.section import Section
from tasks.launch.docker.config import DockerConfig, from_compute
from tasks.launch.slurm.config import SlurmConfig

if TYPE_CHECKING:
    from tasks.launch.launcher import Launcher

LauncherName = Literal["process", "docker", "slurm"]


class LauncherSections(Section):
    """The launchers' own settings: sections of a recipe beside ``compute``."""

    docker: DockerConfig = DockerConfig()
    slurm: SlurmConfig = SlurmConfig()

    @property
    def steps_without_card(self) -> frozenset[str]:
        """Steps of this recipe that compute nothing, though others of their kind do."""
        return frozenset()

    @property
    def slurm_of_steps(self) -> SlurmConfig:
        """What is asked of the cluster, known for each step of this recipe."""
        return self.slurm.without_cards_for(self.steps_without_card)

    @model_validator(mode="before")
    @classmethod
    def _earlier_recipes(cls, values: Any) -> Any:
        return from_compute(values)


def _process() -> "type[Launcher]":
    from tasks.launch.process import ProcessLauncher

    return ProcessLauncher


def _docker() -> "type[Launcher]":
    from tasks.launch.docker.launcher import DockerLauncher

    return DockerLauncher


def _slurm() -> "type[Launcher]":
    from tasks.launch.slurm.launcher import SlurmLauncher

    return SlurmLauncher


LAUNCHERS: "dict[LauncherName, Callable[[], type[Launcher]]]" = {
    "process": _process,
    "docker": _docker,
    "slurm": _slurm,
}
