"""A step's container inside a job, from the docker launcher's own description: arguments of docker, srun (Pyxis), Apptainer.

docker      ``docker run`` for every rank, by its node's engine, started and ended by ``dpo_core.in_slurm`` outside of it
apptainer   ``apptainer exec`` for every rank, the same way
pyxis       flags of srun: the whole task is inside, ``dpo_core.in_slurm`` with it

The same everywhere: read-only root, the job's own folders and nothing else of the node's, no token, no rights. Ranks find
each other by the node's network; a step of one process has none under docker. Pyxis and Apptainer take away no network.
"""

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.rank_container import KIND, NAME, RANK_VARIABLES, SECONDS
from tasks.launch.compute import Machine
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import RunName
from tasks.launch.docker.config import OWN_NETWORK, DockerConfig
from tasks.launch.docker.container import (
    DEADLINE,
    SCRATCH,
    SECRETS_FOLDER,
    ContainerSpec,
    Mount,
    Setup,
    container_spec,
    container_user,
)
from tasks.launch.launcher import CommandSpec, Node
from tasks.launch.slurm.config import ContainerKind, SlurmConfig
from tasks.launch.store_access import check_readable, hand_over, let_read

PYTHON = "/opt/pairline/bin/python"  # the trainer image's (images/trainer/Dockerfile)
SEPARATORS = frozenset(":, \t\n\\#")  # of Pyxis' list of mounts, and of the fstab that Enroot makes of it


@dataclass(frozen=True, slots=True)
class Wanted:
    """The sections of a recipe that decide about a step's container."""

    slurm: SlurmConfig
    docker: DockerConfig
    compute: ComputeConfig


@dataclass(frozen=True, slots=True)
class StepContainer:
    """One description for all ranks of a step; what differs from rank to rank is added where it starts."""

    kind: ContainerKind
    spec: ContainerSpec
    seconds: float  # that the step may run
    has_cards: bool

    @property
    def has_its_program_inside(self) -> bool:
        """Whether ``dpo_core.in_slurm`` runs in the container, too."""
        return self.kind == "pyxis"

    @property
    def variables(self) -> dict[str, str]:
        """What the batch script exports."""
        about = {KIND: self.kind, NAME: self.spec.name, SECONDS: f"{self.seconds:.0f}"}
        if self.kind == "docker":
            return about
        if self.kind == "pyxis":
            return about | self.spec.env
        # Apptainer sets HOME itself, to an empty folder, and refuses another.
        return about | {
            f"APPTAINERENV_{name}": value for name, value in self.spec.env.items() if name != "HOME"
        }

    def command(self) -> tuple[str, ...]:
        """Return what each task runs below ``dpo_core.in_slurm``."""
        if self.kind == "docker":
            return docker_run(self)
        return apptainer_exec(self) if self.kind == "apptainer" else self.spec.argv


def step_container(
    command: CommandSpec, wanted: Wanted, machine: Machine, run: RunName, secrets: Mapping[str, Path]
) -> StepContainer | None:
    """Return the container that the recipe asks for, None for none. Raises ``ConfigError`` for what it cannot be given."""
    slurm, docker, compute = wanted.slurm, wanted.docker, wanted.compute
    if slurm.container == "none":
        return None
    if slurm.container != "docker" and os.getuid() == 0:
        raise ConfigError(
            f"slurm.container is {slurm.container}, and this is root: its steps would run as root, too.",
            "Submit as another user.",
        )
    if docker.network != OWN_NETWORK:
        raise ConfigError(
            f"docker.network is {docker.network}, which the nodes' engines need not have.",
            "Leave it out where steps are jobs of a cluster.",
        )
    program = (PYTHON, *command.program)
    # Where its nodes are, Slurm says.
    inside = replace(command, argv=program, node=Node(), secrets=tuple(secrets))
    setup, user = Setup(slurm.image, compute, docker, machine), container_user(os.getuid(), os.getgid())
    spec = container_spec(inside, setup, user, run, 0.0, os.environ)
    per_node = max(1, command.num_processes // command.node.num_nodes)
    network = "host" if command.num_processes > 1 else spec.network
    kept = {name: value for name, value in spec.labels.items() if name != DEADLINE}  # counts from its start
    mounts = spec.mounts + tuple(
        Mount(file, inside=SECRETS_FOLDER / name) for name, file in sorted(secrets.items())
    )
    spec = replace(
        spec,
        # Processes of Pyxis and Apptainer are Slurm's own, which signals them itself.
        argv=spec.argv if slurm.container == "docker" else program,
        network=network,
        labels=kept,
        mounts=mounts,
        memory_bytes=spec.memory_bytes and spec.memory_bytes // per_node,
    )
    return StepContainer(slurm.container, spec, command.timeout_seconds, machine.num_gpus > 0)


def let_in(command: CommandSpec) -> None:
    """Make the step's folders and inputs usable by the user that its container runs as. Raises ``StoreError``."""
    user = container_user(os.getuid(), os.getgid())
    hand_over((command.folder, *command.writable), user)
    let_read(command.inputs, user)
    check_readable(command.inputs, user)


def docker_run(container: StepContainer) -> tuple[str, ...]:
    """Return the call of docker. Its container ends with its standard input, so with whoever holds the other end of that."""
    spec = container.spec
    limits = {"--memory": spec.memory_bytes, "--memory-swap": spec.memory_bytes}
    return (
        *("docker", "run", "--rm", "--interactive", "--init", "--log-driver=none"),
        *("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges:true", "--ulimit=core=0:0"),
        f"--network={spec.network}",
        f"--user={spec.user[0]}:{spec.user[1]}",
        f"--workdir={spec.folder}",
        f"--tmpfs={SCRATCH}:{spec.scratch_options}",
        f"--pids-limit={spec.max_processes}",
        f"--shm-size={spec.shared_memory_bytes}",
        *(f"{name}={value}" for name, value in limits.items() if value),
        *(f"--label={name}={value}" for name, value in sorted(spec.labels.items())),
        *(f"--env={name}={value}" for name, value in sorted(spec.env.items())),
        *(f"--env={name}" for name in RANK_VARIABLES),  # by name: docker takes their values from its own
        *(f"--mount={_mount(mount, 'target', 'readonly')}" for mount in spec.mounts),
        f"--entrypoint={spec.argv[0]}",
        *(
            ("--pull=never",) if spec.image.startswith("sha256:") else ()
        ),  # no registry knows an engine's own ids
        spec.image,
        *spec.argv[1:],
    )


def apptainer_exec(container: StepContainer) -> tuple[str, ...]:
    """Return the call of Apptainer 1.2 or later, whose environment is what it finds as APPTAINERENV_*."""
    spec = container.spec
    return (
        *("apptainer", "exec", "--containall", "--no-privs", "--no-mount=hostfs,bind-paths"),
        f"--pwd={spec.folder}",
        *(f"--mount={_mount(mount, 'destination', 'ro')}" for mount in spec.mounts),
        *(("--nv",) if container.has_cards else ()),
        spec.image,
        *spec.argv,
    )


def pyxis_flags(container: StepContainer, exported: tuple[str, ...]) -> tuple[str, ...]:
    """Return srun's flags but the mounts. ``exported``: the variables that get in, and no others of the node's."""
    names = ",".join(sorted(exported))
    return (
        f"--container-image={container.spec.image}",
        *("--container-readonly", "--no-container-mount-home", "--no-container-remap-root"),
        "--no-container-entrypoint",
        f"--container-workdir={container.spec.folder}",
        f"--container-env={names}",
        f"--export=PATH,{names}",
    )


def pyxis_mounts(container: StepContainer, record: Path) -> str:
    """Return the value of ``--container-mounts``. The record is read there: which start is the newest.

    Raises ``ConfigError`` for a path that its list cannot hold.
    """
    mounts = (*container.spec.mounts, Mount(record))
    for path in (path for mount in mounts for path in (mount.path, mount.target)):
        if SEPARATORS & set(str(path)):
            raise ConfigError(
                f"slurm.container pyxis cannot mount {str(path)!r}: colons, commas and spaces mean something else there.",
                "Give the store and the inputs other names.",
            )
    listed = [f"{mount.path}:{mount.target}" + ("" if mount.writable else ":ro") for mount in mounts]
    return ",".join((f"tmpfs:{SCRATCH}", *listed))


def _mount(mount: Mount, target: str, read_only: str) -> str:
    """A mount as docker's and Apptainer's ``--mount`` read it: comma-separated fields, quoted as in CSV."""
    fields = ["type=bind", f"source={mount.path}", f"{target}={mount.target}"]
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(fields if mount.writable else [*fields, read_only])
    return text.getvalue()
