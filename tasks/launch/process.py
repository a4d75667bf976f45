"""Runs a step as a child process: in its own process group, dying with its parent, stopped whatever happens."""

import contextlib
import ctypes
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from dpo_core.contract.errors import DiskFull, StoreError
from dpo_core.contract.process_group import ask_to_stop
from tasks.launch.command import DIE_WITH_PARENT
from tasks.launch.compute import Machine, this_machine
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import Context
from tasks.launch.folder_bound import FolderBound
from tasks.launch.killed_rank import KilledRank
from tasks.launch.launcher import BeforeStart, CommandSpec, Ended, OnLine, StepImage, too_slow
from tasks.launch.launchers import LauncherSections
from tasks.launch.lines import LineSplitter, Waiting
from tasks.launch.reaped import OnlyOf, Reaped, StateOf
from tasks.launch.step_environment import PACKAGES_FOLDER, inherited
from tasks.launch.undisturbed import undisturbed

POLL_SECONDS = 0.2
SECONDS_FOR_LAST_LINES = 5.0
PR_SET_PDEATHSIG = 1
# accelerate ends with 1 whatever its child died of, so the signal stands only in what it prints.
SIGNS_OF_A_KILL = ("SIGKILL", "exitcode: -9")


def clean_environment(command: CommandSpec, context: Context) -> dict[str, str]:
    """Return the environment of the child: what it is known to need, plus the command's, plus the secrets it names."""
    kept = inherited(command.needs_network) | {
        name: value for name in command.secrets if (value := context.secret(name))
    }
    path = os.pathsep.join(filter(None, [str(PACKAGES_FOLDER), kept.get("PYTHONPATH", "")]))
    return kept | {"PYTHONPATH": path, DIE_WITH_PARENT: "1"} | command.env


def step_python(compute: ComputeConfig) -> str:
    """Return the interpreter that steps run in."""
    return os.path.abspath(os.path.expanduser(compute.python)) if compute.python else sys.executable


@dataclass(frozen=True, slots=True)
class ProcessLauncher:
    """The launcher for a machine without containers. A step dies with its orchestrator, so there is none to find again."""

    runs_in_image: ClassVar[bool] = False
    spans_machines: ClassVar[bool] = False
    queues: ClassVar[bool] = False
    compute: ComputeConfig
    python: str = sys.executable

    @classmethod
    def of(cls, compute: ComputeConfig, sections: LauncherSections, image: StepImage | None) -> Self:
        """See ``Launcher.of``: the steps' interpreter."""
        return cls(compute, step_python(compute))

    @classmethod
    def target(cls, compute: ComputeConfig, sections: LauncherSections, step: str) -> Machine:
        """See ``Launcher.target``: this one."""
        return this_machine()

    @classmethod
    def is_reached_from_here(cls, sections: LauncherSections, step: str) -> bool:
        """See ``Launcher.is_reached_from_here``: a step is a child of this process."""
        return True

    def machine_for(self, step: str, context: Context) -> Machine:
        """See ``Launcher.machine_for``: this one."""
        return this_machine()

    def compute_for(self, step: str) -> ComputeConfig:
        """See ``Launcher.compute_for``: those of ``compute``."""
        return self.compute

    @classmethod
    def preview(cls, compute: ComputeConfig, sections: LauncherSections, command: CommandSpec) -> str:
        """See ``Launcher.preview``: the command."""
        return ""

    @classmethod
    def reap(cls, dry_run: bool, state_of: StateOf, only_of: OnlyOf) -> list[Reaped] | None:
        """See ``Launcher.reap``: a step dies with its orchestrator."""
        return None

    def clear(self, folder: Path, context: Context) -> None:
        """See ``Launcher.clear``: a process leaves nothing behind."""

    def run(
        self, commands: tuple[CommandSpec, ...], context: Context, on_line: OnLine, before_start: BeforeStart
    ) -> Ended:
        """See ``Launcher.run``. Raises ``TimedOut``; ``StoreError`` if the program cannot be started."""
        (command,) = commands
        before_start()
        kills_before, was_killed, killed_rank = out_of_memory_kills(), False, KilledRank()

        def watch(line: str) -> None:
            nonlocal was_killed
            killed_rank.take(line)
            was_killed = was_killed or any(sign in line for sign in SIGNS_OF_A_KILL)
            on_line(line)

        exit_code = self._run(command, context, watch)
        was_killed = was_killed or exit_code == -signal.SIGKILL
        return Ended(
            exit_code,
            out_of_memory=was_killed and out_of_memory_kills() > kills_before,
            cause=killed_rank.cause() if exit_code else "",
        )

    def _run(self, command: CommandSpec, context: Context, on_line: OnLine) -> int:
        libc = ctypes.CDLL(None)  # before the fork: nothing is loaded in the child
        try:
            child = subprocess.Popen(
                command.argv,
                cwd=command.folder,
                env=clean_environment(command, context),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
            )
        except OSError as error:
            raise StoreError(
                f"{command.argv[0]} cannot be started in {command.folder}: {error.strerror}."
            ) from error
        lines: Waiting[str] = Waiting()
        reader = threading.Thread(target=_read_lines, args=(child, lines), daemon=True)
        reader.start()
        deadline, grace_seconds = (
            time.monotonic() + command.timeout_seconds,
            float(self.compute.stop_grace_seconds or command.stop_grace_seconds),
        )
        bound = FolderBound(command.folder, self.compute.folder_gib)
        try:
            while child.poll() is None:
                lines.hand_over(on_line, wait_seconds=POLL_SECONDS)
                context.raise_if_stopped()
                bound.check()
                if time.monotonic() > deadline:
                    raise too_slow(command)
            return child.returncode
        except DiskFull:
            grace_seconds = 0.0
            raise
        finally:
            try:
                stop_group(child, grace_seconds, meanwhile=lambda: lines.hand_over(on_line))
                _pass_rest_on(lines, reader, on_line)
            finally:
                lines.nobody_listens()


def stop_group(
    child: subprocess.Popen, grace_seconds: float, meanwhile: Callable[[], object] = lambda: None
) -> None:
    """Send SIGTERM, then SIGKILL to what is left of the child's group. Ranks outlive a dead leader otherwise.

    ``meanwhile`` takes what it prints, or a child with much to say would wait for somebody to listen.
    """
    try:
        if child.poll() is None:
            with undisturbed():
                ask_to_stop(child.pid)
                deadline = time.monotonic() + grace_seconds
                while child.poll() is None and time.monotonic() < deadline:
                    meanwhile()
                    time.sleep(POLL_SECONDS / 4)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def out_of_memory_kills(vmstat: Path = Path("/proc/vmstat")) -> int:
    """Return processes that the kernel has killed for lack of memory since it started; 0 where it does not tell."""
    try:
        counts = dict(line.split() for line in vmstat.read_text().splitlines())
    except OSError:
        return 0
    return int(counts.get("oom_kill", 0))


def _read_lines(child: subprocess.Popen, lines: Waiting[str]) -> None:
    """Runs in a thread: a blocking read in the waiting loop would make the step impossible to cancel."""
    splitter, printed = LineSplitter(any_end=True), child.stdout
    assert isinstance(printed, io.BufferedReader), "it was started with a pipe"
    with printed:
        while content := printed.read1():
            for line in splitter.feed(content):
                lines.put(line)
    for line in splitter.rest():
        lines.put(line)


def _pass_rest_on(lines: Waiting[str], reader: threading.Thread, on_line: OnLine) -> None:
    """What the ended child had printed. What left its process group may hold the pipe open: it is not waited for long."""
    deadline = time.monotonic() + SECONDS_FOR_LAST_LINES
    while reader.is_alive() and time.monotonic() < deadline:
        lines.hand_over(on_line, wait_seconds=POLL_SECONDS / 4)
    while lines.hand_over(on_line) and not reader.is_alive():
        pass
