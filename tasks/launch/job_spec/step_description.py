"""A step for engines that this program does not speak to: its command and container, and where its store lies there.

The same ``step_command`` and ``container_spec`` as where it runs here; only a node's rank and address are left to the
engine, which alone knows them when the step starts.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.job import Job
from dpo_core.contract.job_registry import JOBS
from tasks.launch.command import NODE_PORT, launch_argv, step_command, typical_command
from tasks.launch.compute import Machine
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import RunName
from tasks.launch.docker.config import DockerConfig
from tasks.launch.docker.container import ContainerSpec, Setup, container_spec, container_user
from tasks.launch.job_spec.config import NodeSection
from tasks.launch.launcher import CommandSpec, Node, StepImage
from tasks.launch.store_access import with_link_targets

GIB = 2**30
OF_NODES = {"cpus_per_node": "cores of a node", "memory_gib": "memory of a node"}


@dataclass(frozen=True, slots=True)
class NodeWords:
    """Words of the command that the engine replaces when a node starts."""

    rank: str
    leader: str  # address of node 0


@dataclass(frozen=True, slots=True)
class StepDescription:
    """One node's container, how many of them, and what bounds them."""

    command: CommandSpec
    container: ContainerSpec
    num_nodes: int
    num_cards: int  # of each node
    num_cores: int
    memory_bytes: int
    timeout_seconds: int
    retries: int

    @property
    def job_file(self) -> Path:
        """The job that it runs."""
        return Path(self.command.program[-1])


@dataclass(frozen=True, slots=True)
class Asked:
    """Which step, and with what: a job of a store, or the step's name alone."""

    step: str
    job: Job | None
    store: Path
    computes: bool = True  # False: of a kind that uses cards, but this recipe's only asks a server

    @property
    def uses_cards(self) -> bool:
        """Whether a node of it needs its cards."""
        return self.computes and JOBS[self.step].uses_cards()


def describe(
    asked: Asked,
    compute: ComputeConfig,
    docker: DockerConfig,
    section: NodeSection,
    words: NodeWords,
    image: StepImage,
) -> StepDescription:
    """Describe a step. Raises ``ConfigError`` for what the section lacks, if a node has fewer cards than processes, or if
    processes that compute together would be on several."""
    is_parallel = JOBS[asked.step].is_parallel
    num_nodes = section.nodes if is_parallel else 1
    compute = compute.model_copy(update={"machines": section.nodes})  # whatever launches steps here
    each, rest = divmod(compute.num_processes, num_nodes) if is_parallel else (1, 0)
    if rest or 0 < section.gpus_per_node < each:
        raise ConfigError(
            f"{section.engine}.nodes is {section.nodes}, with {section.gpus_per_node} cards on each, and "
            f"{compute.num_processes} processes (compute.num_processes) are to share them, each a card of its own.",
            f"Set {section.engine}.nodes or compute.num_processes so that each node has as many, and a card for each.",
        )
    if is_parallel and (torn := compute.torn_groups(num_nodes)):
        raise ConfigError(f"{torn}.", f"Or set {section.engine}.nodes to another number.")
    memory_gib, cores = section.memory_gib or 0, section.cpus_per_node or 1
    machine = Machine(cores, section.gpus_per_node if asked.uses_cards else 0, round(memory_gib * GIB))
    command = _command(asked, compute, machine, image.python, num_nodes, words)
    setup = Setup(image.reference, compute, docker.model_copy(update={"memory_gib": memory_gib}), machine)
    user = container_user(os.getuid(), os.getgid())
    container = container_spec(command, setup, user, RunName(), 0.0, environ={})
    return StepDescription(
        command,
        container,
        num_nodes,
        each if machine.num_gpus else 0,
        cores,
        machine.memory_bytes,
        int(command.timeout_seconds),
        section.retries,
    )


def _command(
    asked: Asked, compute: ComputeConfig, machine: Machine, python: str, num_nodes: int, words: NodeWords
) -> CommandSpec:
    node = (
        Node(0, num_nodes, words.leader, NODE_PORT, compute.join_timeout_seconds) if num_nodes > 1 else Node()
    )
    if asked.job is None:
        open_ = typical_command(asked.step, compute, machine, asked.store)
        threads = int(open_.env["OMP_NUM_THREADS"])
        argv = launch_argv(python, open_.folder, node, open_.num_processes, threads, open_.program)
        return replace(open_, argv=_of_any_node(argv, words))
    command = step_command(asked.job, compute, machine, python, node)
    inputs = with_link_targets(command.inputs, command.named_by_people)
    return replace(command, argv=_of_any_node(command.argv, words), inputs=inputs)


def _of_any_node(argv: tuple[str, ...], words: NodeWords) -> tuple[str, ...]:
    """The command with the engine's word for the node's rank."""
    if "--machine_rank" not in argv:
        return argv
    place = argv.index("--machine_rank") + 1
    return (*argv[:place], words.rank, *argv[place + 1 :])


def require(section: NodeSection, meanings: dict[str, str]) -> None:
    """Raise ``ConfigError`` that names every setting of the section that is needed and empty."""
    name, meanings = section.engine, meanings | OF_NODES
    if missing := [field for field in meanings if not getattr(section, field)]:
        raise ConfigError(
            f"A step's description for {name} needs "
            + ", ".join(f"{name}.{field}" for field in missing)
            + ".",
            "Set "
            + "; ".join(f"{name}.{field}: {meanings[field]}" for field in missing)
            + " (docs/cluster.md, docs/settings.md).",
        )


def check_below(mount_path: Path, paths: Iterable[Path], setting: str) -> None:
    """Raise ``ConfigError`` for a file or folder that the engine's nodes will not see."""
    for path in paths:
        if not path.is_relative_to(mount_path):
            raise ConfigError(
                f"{path} is read or written by the step, and does not lie below {setting} {mount_path}.",
                "Put store.root and the recipe's local files on the volume that the nodes mount.",
            )
