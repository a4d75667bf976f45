"""What starts a step: pure data in, how it ended out. Processes and containers implement the same protocol."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dpo_core.contract.compute_config import ComputeConfig
from dpo_core.contract.errors import TimedOut
from dpo_core.contract.progress import ProgressEvent

OnLine = Callable[[str], None]
OnProgress = Callable[[ProgressEvent], None]


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

    argv: tuple[str, ...]
    folder: Path
    timeout_seconds: float
    env: dict[str, str] = field(default_factory=dict)  # added to the launcher's clean environment
    secrets: tuple[str, ...] = ()  # names of the secret variables that this step may see; usually none
    step: str = ""
    job_fingerprint: str = ""
    inputs: tuple[Path, ...] = ()  # files and folders that are read
    named_by_people: tuple[Path, ...] = ()  # those of them whose links are followed: no step made them
    writable: tuple[Path, ...] = ()  # folders beside ``folder`` that are written to
    needs_network: bool = False
    node: Node = Node()


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    exit_code: int  # negative: killed by that signal
    out_of_memory: bool = False  # the kernel killed one of its processes for memory
    cause: str = ""  # why, where the launcher knows better than the step: another machine's part was killed
    unseen: bool = False  # somebody removed it before its exit code was read; what it left in its folder decides


BeforeStart = Callable[[], None]


class Launcher(Protocol):
    """Runs a command to its end, with the resources of ``compute``."""

    compute: ComputeConfig
    python: str  # interpreter on the side where the command runs

    def run(self, commands: tuple[CommandSpec, ...], on_line: OnLine, before_start: BeforeStart) -> Ended:
        """Start a step's commands (one, or one for each of its nodes) and wait for their end.

        Every line they print goes to ``on_line``. ``before_start`` is called if the step is started, and not if it
        runs already and is only waited for. Whatever ends this call (return, error, cancellation), nothing of the step
        runs afterwards; only what a killed orchestrator leaves behind may run on, where the launcher can find it again.
        Raises ``TimedOut`` after ``timeout_seconds``.
        """
        ...

    def clear(self, folder: Path) -> None:
        """End and remove what is left of an earlier start of the job in ``folder``, whose result is to be reused.

        For who holds the claim on the folder.
        """
        ...


def too_slow(command: CommandSpec) -> TimedOut:
    """The error of a step over its time."""
    return TimedOut(f"The step ran longer than {command.timeout_seconds:g} s and was stopped. Start again to go on from "
                    "its last checkpoint, or raise compute.step_timeout_seconds.")


@dataclass(frozen=True, slots=True)
class RunName:
    """On whose behalf steps run; told in logs and on what is started, decides nothing."""

    name: str = ""
    flow_run_id: str = ""


_run: ContextVar[RunName] = ContextVar("run that steps belong to", default=RunName())  # noqa: B039 (frozen)


@contextmanager
def on_behalf_of(run: RunName) -> Iterator[None]:
    """Steps inside the ``with`` block belong to ``run``."""
    token = _run.set(run)
    try:
        yield
    finally:
        _run.reset(token)


def current_run() -> RunName:
    """The run that steps belong to now; without a name outside of runs."""
    return _run.get()


class Stopped(BaseException):
    """The run that a step belongs to is being stopped. No failure of the step's, so nothing retries it."""


_stop: ContextVar[threading.Event | None] = ContextVar("what stops steps", default=None)


@contextmanager
def stopped_by(event: threading.Event) -> Iterator[None]:
    """Steps inside the ``with`` block end once ``event`` is set. For threads: a signal reaches the main one alone."""
    token = _stop.set(event)
    try:
        yield
    finally:
        _stop.reset(token)


def raise_if_stopped() -> None:
    """Called by launchers while they wait. Raises ``Stopped``."""
    if (event := _stop.get()) is not None and event.is_set():
        raise Stopped("the run is being stopped")


class LineListener(Protocol):
    """Hears the log lines of steps while they run."""

    def line(self, line: str) -> None:
        """A line that the step printed."""

    def progress(self, event: ProgressEvent) -> None:
        """Where the step stands."""

    def end(self) -> None:
        """The step has ended."""


_line_listener: ContextVar[LineListener | None] = ContextVar("log line listener", default=None)


@contextmanager
def hearing_lines(listener: LineListener) -> Iterator[None]:
    """Tell ``listener`` the log lines of all steps run inside the ``with`` block."""
    token = _line_listener.set(listener)
    try:
        yield
    finally:
        _line_listener.reset(token)


def current_line_listener() -> LineListener | None:
    """Who wants to hear log lines now, if anybody."""
    return _line_listener.get()


_listener: ContextVar[OnProgress | None] = ContextVar("progress listener", default=None)


@contextmanager
def listening(on_progress: OnProgress) -> Iterator[None]:
    """Send the progress of all steps run inside the ``with`` block to ``on_progress`` (the command line's bars)."""
    token = _listener.set(on_progress)
    try:
        yield
    finally:
        _listener.reset(token)


def current_listener() -> OnProgress | None:
    """Who wants to hear of progress now, if anybody."""
    return _listener.get()
