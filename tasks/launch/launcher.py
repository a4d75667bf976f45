"""What starts a step: pure data in, how it ended out. Processes, containers and a cluster's jobs have one protocol."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

from dpo_core.contract.errors import ConfigError, TimedOut
from tasks.launch.compute import Machine
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import Context
from tasks.launch.launchers import LAUNCHERS, LauncherSections
from tasks.launch.stop_grace import LEAST_SECONDS

if TYPE_CHECKING:
    from tasks.launch.reaped import OnlyOf, Reaped, StateOf

OnLine = Callable[[str], None]
BeforeStart = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Node:
    """One machine's part in a step of several: what each must know to find the others. A scheduler may fill it in."""

    rank: int = 0
    num_nodes: int = 1
    address: str = "127.0.0.1"  # of node 0, as the others reach it
    port: int = 0  # where node 0 waits for them; 0 where there are no others
    join_timeout_seconds: int = 300


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """One command, complete: nothing else decides what runs. ``folder`` is the job's own folder and the working
    directory.

    A process sees the whole machine; a container sees ``folder`` and ``writable``, reads ``inputs``, and has a network if
    ``needs_network``.
    """

    argv: tuple[str, ...]  # starts all processes of a node, for a launcher that does not start them itself
    folder: Path
    timeout_seconds: float
    program: tuple[str, ...] = ()  # what each process is, after its interpreter; the job's file comes last
    num_processes: int = 1  # of all nodes together
    env: dict[str, str] = field(default_factory=dict)  # added to the launcher's clean environment
    secrets: tuple[str, ...] = ()  # names of the secret variables that this step may see; usually none
    step: str = ""
    job_fingerprint: str = ""
    inputs: tuple[Path, ...] = ()  # files and folders that are read
    named_by_people: tuple[Path, ...] = ()  # those of them whose links are followed: no step made them
    writable: tuple[Path, ...] = ()  # folders beside ``folder`` that are written to
    needs_network: bool = False
    compiles: bool = False  # loads programs that it makes, from its scratch folder
    node: Node = Node()
    stop_grace_seconds: int = (
        LEAST_SECONDS  # from being asked to stop to being killed, unless a recipe says another
    )

    @property
    def name(self) -> str:
        """The same for every start of the same job in the same place, so that there is one of it."""
        return job_name(self.step, self.job_fingerprint, str(self.folder))


def job_name(step: str, job_fingerprint: str, folder: str) -> str:
    """Return what launchers call a job's start, in an engine's list or a cluster's queue."""
    place = hashlib.sha256(folder.encode()).hexdigest()[:8]
    return f"pairline-{step}-{job_fingerprint[:16]}-{place}"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    exit_code: int  # negative: killed by that signal
    out_of_memory: bool = False  # the kernel killed one of its processes for memory
    cause: str = ""  # why, where the launcher knows better than the step: another machine's part was killed
    unseen: bool = (
        False  # somebody removed it before its exit code was read; what it left in its folder decides
    )
    advice: str = ""  # on memory, where the launcher has a setting for it


@dataclass(frozen=True, slots=True)
class StepImage:
    """The image that steps run in, and the interpreter there."""

    reference: str  # id or digest, never a tag
    python: str


class Launcher(Protocol):
    """Runs a command to its end, with the resources of ``compute``."""

    runs_in_image: ClassVar[
        bool
    ]  # an image with the step's packages, which is built first; else in this Python
    spans_machines: ClassVar[bool]  # takes ``compute.machines`` above 1
    queues: ClassVar[bool]  # its steps wait for their machines by themselves, for as long as it takes

    @classmethod
    def of(cls, compute: ComputeConfig, sections: LauncherSections, image: StepImage | None) -> Self:
        """Return the launcher that a recipe asks for; ``image`` for one that runs in it.

        Raises ``ConfigError`` or ``RemoteError`` where what it needs is not there.
        """
        ...

    @classmethod
    def target(cls, compute: ComputeConfig, sections: LauncherSections, step: str) -> Machine:
        """Return the machine that a step will run on, each of them where there are several, as far as the recipe says."""
        ...

    @classmethod
    def is_reached_from_here(cls, sections: LauncherSections, step: str) -> bool:
        """Return whether a server that a step can reach can be reached from this process, too."""
        ...

    def machine_for(self, step: str, context: Context) -> Machine:
        """Return the same, known: its cores and cards decide about threads, devices and refusals, not the orchestrator's.

        Raises ``ConfigError`` or ``RemoteError`` where it cannot be found out.
        """
        ...

    def compute_for(self, step: str) -> ComputeConfig:
        """Return the processes of a step; those of ``compute``, unless the launcher deals its work out otherwise."""
        ...

    @classmethod
    def preview(cls, compute: ComputeConfig, sections: LauncherSections, command: CommandSpec) -> str:
        """Return how a step would be started, for a plan; empty where the command says it all."""
        ...

    @classmethod
    def reap(cls, dry_run: bool, state_of: "StateOf", only_of: "OnlyOf") -> "list[Reaped] | None":
        """End what no live run owns (see ``reap_all``); None where this launcher leaves nothing, or is not installed."""
        ...

    @property
    def compute(self) -> ComputeConfig: ...

    @property
    def python(self) -> str:
        """Interpreter on the side where the command runs."""
        ...

    def run(
        self, commands: tuple[CommandSpec, ...], context: Context, on_line: OnLine, before_start: BeforeStart
    ) -> Ended:
        """Start a step's commands (one, or one for each of its nodes) and wait for their end.

        Every line they print goes to ``on_line``; ``context`` says for whom, and may stop them. ``before_start`` is
        called if the step is started, and not if it runs already and is only waited for. Whatever ends this call (return,
        error, cancellation), nothing of the step runs afterwards; only what a killed orchestrator leaves behind may run on,
        where the launcher can find it again. Raises ``TimedOut`` after ``timeout_seconds``, ``Stopped``.
        """
        ...

    def clear(self, folder: Path, context: Context) -> None:
        """End and remove what is left of an earlier start of the job in ``folder``, whose result is to be reused.

        For who holds the claim on the folder.
        """
        ...


def too_slow(command: CommandSpec) -> TimedOut:
    """Return the error of a step over its time."""
    return TimedOut(
        f"The step ran longer than {command.timeout_seconds:g} s and was stopped. Start again to go on from "
        "its last checkpoint, or raise compute.step_timeout_seconds."
    )


def kind_of(compute: ComputeConfig) -> type[Launcher]:
    """Return the class of the launcher that the recipe asks for."""
    return LAUNCHERS[compute.launcher]()


def launcher_for(
    compute: ComputeConfig, sections: LauncherSections = LauncherSections(), image: StepImage | None = None
) -> Launcher:
    """Return the launcher that the recipe asks for. Raises ``ConfigError`` if it needs an image and none is given; see
    ``of``.
    """
    kind = kind_of(compute)
    if kind.runs_in_image and image is None:
        raise ConfigError(
            f"compute.launcher is {compute.launcher}, but this flow has no trainer image. Set "
            "compute.launcher to process."
        )
    return kind.of(compute, sections, image)
