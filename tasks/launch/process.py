"""Runs a step as a child process: in its own process group, dying with its parent, stopped whatever happens."""

import contextlib
import ctypes
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from dpo_core.config import ComputeConfig
from dpo_core.errors import StoreError, TimedOut
from tasks.launch.command import DIE_WITH_PARENT
from tasks.launch.launcher import CommandSpec, OnLine

POLL_SECONDS = 0.2
PR_SET_PDEATHSIG = 1
# The step gets the user's environment without what could be a secret, and without Prefect's own settings.
PRIVATE_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY|AUTH|^PREFECT_", re.IGNORECASE)
HARMLESS_NAMES = ("TOKENIZERS_PARALLELISM", "XAUTHORITY")
PACKAGES_FOLDER = Path(__file__).resolve().parents[2]  # where dpo_core lies, installed or not


def clean_environment(command: CommandSpec) -> dict[str, str]:
    """The environment of the child: inherited without secrets, plus the command's, plus the secrets it names."""
    kept = {name: value for name, value in os.environ.items()
            if name in HARMLESS_NAMES or name in command.secrets or not PRIVATE_NAME.search(name)}
    path = os.pathsep.join(filter(None, [str(PACKAGES_FOLDER), kept.get("PYTHONPATH", "")]))
    return kept | {"PYTHONPATH": path, DIE_WITH_PARENT: "1"} | command.env


@dataclass(frozen=True, slots=True)
class ProcessLauncher:
    """The launcher for a machine without containers."""

    compute: ComputeConfig
    python: str = sys.executable

    def run(self, command: CommandSpec, on_line: OnLine) -> int:
        """See ``Launcher.run``. Raises ``TimedOut``; ``StoreError`` if the program cannot be started."""
        libc = ctypes.CDLL(None)  # before the fork: nothing is loaded in the child
        try:
            child = subprocess.Popen(
                command.argv, cwd=command.folder, env=clean_environment(command), stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
                preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
        except OSError as error:
            raise StoreError(f"{command.argv[0]} cannot be started in {command.folder}: {error.strerror}.") from error
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        reader = threading.Thread(target=_read_lines, args=(child, lines), daemon=True)
        reader.start()
        deadline = time.monotonic() + command.timeout_seconds
        try:
            while child.poll() is None:
                _hand_over(lines, on_line, wait_seconds=POLL_SECONDS)
                if time.monotonic() > deadline:
                    raise TimedOut(f"The step ran longer than {command.timeout_seconds:g} s and was stopped. Start "
                                   "again to go on from its last checkpoint, or raise compute.step_timeout_seconds.")
            return child.returncode
        finally:
            stop_group(child, self.compute.stop_grace_seconds)
            reader.join(timeout=5)
            _hand_over(lines, on_line)


def stop_group(child: subprocess.Popen, grace_seconds: float) -> None:
    """SIGTERM, then SIGKILL to what is left of the child's group. Ranks outlive a dead leader otherwise.

    The leader, `accelerate launch`, gets no SIGTERM while it has children: it would die at once and take the trainer
    with it, which is to write a checkpoint first. It ends by itself after them.
    """
    if child.poll() is None:
        members = group_members(child.pid)
        for pid in members - {child.pid} or members:
            _signal(pid, signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 4)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def group_members(group: int) -> set[int]:
    """Live processes of a process group."""
    members = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = stat.read_text().rsplit(")", 1)[1].split()[:3]
            if int(its_group) == group and state != "Z":
                members.add(int(stat.parent.name))
    return members


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _read_lines(child: subprocess.Popen, lines: "queue.SimpleQueue[str]") -> None:
    """Runs in a thread: a blocking read in the waiting loop would make the step impossible to cancel."""
    with child.stdout:
        for line in child.stdout:
            lines.put(line.rstrip("\n"))


def _hand_over(lines: "queue.SimpleQueue[str]", on_line: OnLine, wait_seconds: float = 0.0) -> None:
    """Pass on what has come; wait at most ``wait_seconds`` for the first line."""
    with contextlib.suppress(queue.Empty):
        on_line(lines.get(timeout=wait_seconds) if wait_seconds else lines.get_nowait())
        while True:
            on_line(lines.get_nowait())
