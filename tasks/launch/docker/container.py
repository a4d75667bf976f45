"""What a step's container is, as pure data: command, image, compute and machine in, ``ContainerSpec`` out.

Everything is mounted at the path that it has outside, so ``job.json`` means the same on both sides.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dpo_core.contract.judge_config import JUDGE_KEY, JUDGE_KEY_FILE
from dpo_core.contract.rank_container import START
from dpo_core.contract.tracking_config import WANDB_KEY, WANDB_KEY_FILE
from tasks.launch.compute import Machine
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import RunName
from tasks.launch.docker.config import DockerConfig
from tasks.launch.launcher import CommandSpec, Node, job_name
from tasks.launch.step_environment import PROXIES

GIB = 2**30
SHARE_OF_MEMORY = 0.9  # the orchestrator and the engine need some, too
SCRATCH, SCRATCH_BYTES = "/tmp", 4 * GIB  # counts as the container's memory
# What a step compiles goes where it may be loaded from: nobody may execute anything in the scratch folder of the others.
CACHES = {"TORCHINDUCTOR_CACHE_DIR": f"{SCRATCH}/inductor", "TRITON_CACHE_DIR": f"{SCRATCH}/triton"}
# What the engine keeps of a container's output until it is removed: the newest LOG_FILES files. The orchestrator copies it
# as it comes; only what is printed faster than it reads, by more than this, or while it is away, is lost to log.txt.
LOG_FILE_BYTES, LOG_FILES = 32 << 20, 4
USER_OF_ROOTS_STORE = (
    10001,
    10001,
)  # steps never run as root, so root's store is handed to this user while they do
SECRETS_FOLDER = Path("/run/secrets")
# A secret -> the variable that names the file with it.
IN_FILES = {"HF_TOKEN": "HF_TOKEN_PATH", WANDB_KEY: WANDB_KEY_FILE, JUDGE_KEY: JUDGE_KEY_FILE}
LABEL = "pairline"  # "1" on everything that is ours
RUN, STEP, JOB, FOLDER, DEADLINE, GRACE = (
    f"{LABEL}.{name}" for name in ("run", "step", "job", "folder", "deadline", "grace")
)
FLOW_RUN, NODE = f"{LABEL}.flow-run", f"{LABEL}.node"
NETWORK = f"{LABEL}.network"  # on a network that steps may be put into
# Of the orchestrator's environment, for the one step that has a network.
NETWORK_SETTINGS = ("HF_ENDPOINT", "HF_HUB_DISABLE_XET", *PROXIES)
CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or folder of this machine, visible inside at the same path."""

    path: Path
    writable: bool = False
    inside: Path | None = None  # elsewhere inside, where that is not the same

    @property
    def target(self) -> Path:
        """Where it is to be seen inside."""
        return self.inside or self.path


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """One container, complete."""

    name: str
    image: str
    argv: tuple[str, ...]
    env: dict[str, str]
    folder: Path
    mounts: tuple[Mount, ...]
    secrets: tuple[str, ...]  # each becomes SECRETS_FOLDER/NAME
    labels: dict[str, str]
    user: tuple[int, int]
    network: str
    hostname: str | None
    memory_bytes: int | None
    shared_memory_bytes: int
    max_processes: int
    gpus: tuple[str, ...] | int  # ids, or how many; 0 for none
    stop_grace_seconds: int
    executable_scratch: bool = False

    @property
    def scratch_options(self) -> str:
        """How its scratch folder in memory is mounted, in the engine's words."""
        return f"size={SCRATCH_BYTES},mode=1777{',exec' if self.executable_scratch else ''}"


def container_name(command: CommandSpec) -> str:
    """Return what the engine admits one of."""
    return _on_node(command.name, identity_of(command))


def identity_of(command: CommandSpec) -> dict[str, str]:
    """Return the labels that a container's name is made of."""
    return {
        STEP: command.step,
        JOB: command.job_fingerprint,
        FOLDER: str(command.folder),
        **({NODE: str(command.node.rank)} if command.node.num_nodes > 1 else {}),
    }


def name_by_labels(labels: Mapping[str, str]) -> str:
    """Return the name of the container that has these labels. One that has them of its image has another name."""
    name = job_name(labels.get(STEP, ""), labels.get(JOB, ""), labels.get(FOLDER, ""))
    return f"{name}-{labels[START]}" if START in labels else _on_node(name, labels)


def _on_node(name: str, labels: Mapping[str, str]) -> str:
    return f"{name}-{labels[NODE]}" if NODE in labels else name


def container_user(uid: int, gid: int) -> tuple[int, int]:
    """Return the user that a step runs as: the one who started it, so that the results are theirs; never root."""
    return (uid, gid) if uid else USER_OF_ROOTS_STORE


@dataclass(frozen=True, slots=True)
class Setup:
    """What is the same for every container of a launcher."""

    image: str
    compute: ComputeConfig
    docker: DockerConfig
    machine: Machine


def container_spec(
    command: CommandSpec,
    setup: Setup,
    user: tuple[int, int],
    run: RunName,
    deadline: float,
    environ: Mapping[str, str],
) -> ContainerSpec:
    """Describe the container of a step. ``deadline``: when the step is over time, Unix seconds; ``environ``: the
    orchestrator's own environment.
    """
    compute, docker, machine = setup.compute, setup.docker, setup.machine
    env = {
        "HOME": SCRATCH,
        "TMPDIR": SCRATCH,
        "HF_HOME": f"{SCRATCH}/huggingface",
        "PYTHONDONTWRITEBYTECODE": "1",
        "USER": "pairline",
    }  # PyTorch asks who it is, and not every user has a name in the image
    network, reads = "none", set(command.inputs)
    if command.needs_network:
        network = docker.network
        env |= {name: environ[name] for name in (*NETWORK_SETTINGS, *CERTIFICATES) if name in environ}
        reads |= {Path(environ[name]) for name in CERTIFICATES if name in environ}
    else:
        env["HF_HUB_OFFLINE"] = "1"  # an answer at once where a library would ask the Hub
    if command.node.num_nodes > 1:
        network = network_of_nodes(command)
        env["GLOO_SOCKET_IFNAME"] = env["NCCL_SOCKET_IFNAME"] = "eth0"
    if command.compiles:
        env |= CACHES
    env |= {IN_FILES[name]: str(SECRETS_FOLDER / name) for name in command.secrets}
    memory = docker.memory_gib * GIB if docker.memory_gib else machine.memory_bytes * SHARE_OF_MEMORY
    grace = compute.stop_grace_seconds or command.stop_grace_seconds
    return ContainerSpec(
        name=container_name(command),
        image=setup.image,
        folder=command.folder,
        env=env | command.env,
        argv=(command.argv[0], "-m", "dpo_core.in_container", *command.argv),
        mounts=(
            *(Mount(path) for path in sorted(reads)),
            *(Mount(path, writable=True) for path in (command.folder, *command.writable)),
        ),
        secrets=command.secrets,
        labels=labels_of(command, run, deadline, grace),
        user=user,
        network=network,
        hostname=f"node-{command.node.rank}" if command.node.num_nodes > 1 else None,
        memory_bytes=int(memory) or None,
        shared_memory_bytes=int(docker.shared_memory_gib * GIB),
        max_processes=docker.max_processes,
        gpus=_gpus(command.node, machine, environ),
        stop_grace_seconds=grace,
        executable_scratch=command.compiles,
    )


def labels_of(command: CommandSpec, run: RunName, deadline: float, grace_seconds: int) -> dict[str, str]:
    """Return what `docker inspect` and `pairline reap` are told."""
    return {
        LABEL: "1",
        **identity_of(command),
        RUN: run.name,
        FLOW_RUN: run.flow_run_id,
        DEADLINE: f"{deadline:.0f}",
        GRACE: str(grace_seconds),
    }


def line_prefix(labels: Mapping[str, str]) -> str:
    """Return what log lines of a container begin with: nothing, or the node where there are several."""
    return f"[node {labels[NODE]}] " if NODE in labels else ""


def network_of_nodes(command: CommandSpec) -> str:
    """Return the private network of a step's nodes."""
    return container_name(command).removesuffix(f"-{command.node.rank}")


def _gpus(node: Node, machine: Machine, environ: Mapping[str, str]) -> tuple[str, ...] | int:
    """Ids of the cards of a node, which may be one of several on this machine: two processes cannot share a card. All that
    the orchestrator sees, if there is one node."""
    if machine.num_gpus == 0:
        return 0
    visible = environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    if node.num_nodes == 1:
        return tuple(visible.split(",")) if visible else machine.num_gpus
    cards = visible.split(",") if visible else [str(number) for number in range(machine.num_gpus)]
    each = len(cards) // node.num_nodes
    return tuple(cards[node.rank * each : (node.rank + 1) * each])
