"""A program that goes on after the command that started it: found again by a file with its process id."""

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from dpo_core.contract.errors import PairlineError
from dpo_core.contract.store import write_bytes

POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Background:
    """The program ``name``: ``<folder>/<name>.pid`` (its id and when it started) and ``<folder>/<name>.log``."""

    name: str
    folder: Path

    @property
    def pid_file(self) -> Path:
        return self.folder / f"{self.name}.pid"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def pid(self) -> int | None:
        """Return its process id if it lives. Another process that got the same number later is not mistaken for it."""
        try:
            pid, started = self.pid_file.read_text().split()
            return int(pid) if start_time(int(pid)) == started else None
        except (OSError, ValueError):
            return None

    def start(self, argv: list[str], environment: dict[str, str], cwd: Path) -> bool:
        """Start it in a session of its own unless it lives. -> whether it was started"""
        if self.pid() is not None:
            return False
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(
            os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600), "ab"
        ) as log:
            child = subprocess.Popen(
                argv,
                env=environment,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        write_bytes(self.pid_file, f"{child.pid} {start_time(child.pid)}\n".encode())
        return True

    def stop(self, grace_seconds: float) -> bool:
        """Send SIGTERM, and SIGKILL after ``grace_seconds``. -> whether it lived"""
        pid = self.pid()
        if pid is not None:
            send(pid, signal.SIGTERM)
            deadline = time.monotonic() + grace_seconds
            while self.pid() is not None and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            if self.pid() is not None:
                send(pid, signal.SIGKILL)
        self.pid_file.unlink(missing_ok=True)
        return pid is not None

    def last_lines(self, count: int = 15) -> str:
        """Return the end of its log."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])
        return "(no log)"

    def check_alive(self) -> None:
        """Raise ``PairlineError`` with the end of its log if it has ended."""
        if self.pid() is None:
            raise PairlineError(
                f"The {self.name} ended by itself. Its log is {self.log}; its last lines:\n"
                f"{self.last_lines()}"
            )


def start_time(pid: int) -> str:
    """Return clock ticks from the machine's start to the process's, as text. Raises ``OSError`` if it is gone or a
    zombie.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    if fields[0] == "Z":
        raise ProcessLookupError(f"process {pid} has ended")
    return fields[19]


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
