"""The first program of each task under srun: ``python -m dpo_core.in_slurm START BEFORE COMMAND...``.

It tells the step's process its rank, waits for what an earlier start has left running, passes SIGTERM on, and ends the
process once a newer start of the job began or its run is over: a node that its controller has lost runs on, and nobody
else can end what is there. START is this start's folder, beside it lies ``attempt`` with the name of the newest; BEFORE is
the folder of the start before, or empty.
Tasks write into START/ranks alone, the one place of it that a container may write. Standard library alone.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from dpo_core.contract.rank_container import KIND
from dpo_core.slurm_container import contained, exit_code

SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_FOR_THE_START_BEFORE = 10.0  # five looks
OVER_FILE = "over"  # in a start's folder: nobody waits for it any more
FENCED = 75  # sysexits.h: try again
SIGNAL_EXIT = 128
NOT_STARTED = 127  # a shell's
PR_SET_PDEATHSIG = 1  # linux/prctl.h
FIRST_PORT, NUM_PORTS = 20_000, 12_000  # below Linux's own choice for others, which begins at 32768


def ranks(given: Mapping[str, str]) -> dict[str, str]:
    """Return what torch reads of its place among the step's processes; nothing where there is one."""
    world = int(given["SLURM_NTASKS"])
    if world == 1:
        return {}
    per_node = world // int(given["SLURM_JOB_NUM_NODES"])
    port = (
        FIRST_PORT + (int(given["SLURM_JOB_ID"]) + 97 * int(given.get("SLURM_RESTART_COUNT", 0))) % NUM_PORTS
    )
    return {
        "RANK": given["SLURM_PROCID"],
        "LOCAL_RANK": given["SLURM_LOCALID"],
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(per_node),
        "GROUP_RANK": given["SLURM_NODEID"],
        "MASTER_ADDR": address_of(
            given.get("PAIRLINE_FIRST_NODE", ""), given.get("SLURM_LAUNCH_NODE_IPADDR", "")
        ),
        "MASTER_PORT": str(port),
    }


def address_of(name: str, address: str) -> str:
    """Return the node's name if it can be resolved here, else the address that srun gave."""
    with contextlib.suppress(OSError):
        if name:
            socket.getaddrinfo(name, None)
            return name
    return address or "127.0.0.1"


def write(file: Path, written: Mapping[str, object]) -> None:
    """Write JSON so that it is there whole or not at all."""
    aside = file.with_suffix(".aside")
    aside.write_text(json.dumps(written) + "\n")
    aside.replace(file)


def seconds_left(start: Path) -> float | None:
    """Return how long the step may still take to keep what it has; None while it may go on.

    0 once a newer start has begun. Once the run is over it is what the run gave, in seconds, where Slurm could not be
    asked to tell the step. Where the store cannot be read, the step cannot write either.
    """
    try:
        if (start.parent / "attempt").read_text().strip() not in ("", start.name):
            return 0.0
    except OSError:
        if not start.is_dir():
            return 0.0
    try:
        return float((start / OVER_FILE).read_text() or 0)
    except ValueError:
        return 0.0
    except OSError:
        return None


def may_go_on(start: Path) -> bool:
    """Return whether no newer start has begun and the run has not ended."""
    return seconds_left(start) is None


def wait_for(before: Path, seconds: float = SECONDS_FOR_THE_START_BEFORE) -> None:
    """Wait until every task of an earlier start has ended, which it does once it sees this one.

    That its batch script has ended says nothing: srun ends with 0 where the controller has lost a node whose tasks live.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if all(has_ended(file) for file in before.glob("ranks/rank-*.json")):
            return
        time.sleep(0.2)


def has_ended(file: Path) -> bool:
    """Return whether a task has written down how it ended."""
    try:
        return "code" in json.loads(file.read_text())
    except (OSError, ValueError):
        return False


def main(argv: list[str]) -> int:
    """Run the command to its end; returns its exit code."""
    start, before, command = Path(argv[0]), argv[1], argv[2:]
    asked = StopPassedOn()
    rank = os.environ["SLURM_PROCID"]
    file = start / "ranks" / f"rank-{rank}.json"
    about: dict[str, object] = {
        "rank": int(rank),
        "world": int(os.environ.get("SLURM_NTASKS", "0")),
        "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
    }
    write(file, about)
    if before:
        wait_for(Path(before))
    if not may_go_on(start):  # its node was slow, and is not waited for any more
        write(file, about | {"code": FENCED, "time": time.time()})
        return FENCED
    code, fenced = run(command, start, file, asked)
    with contextlib.suppress(OSError):  # what it was killed with says nothing of the step
        write(file, about | {"code": FENCED if fenced else code, "time": time.time()})
    if fenced:
        print("A newer start of this step has begun, or its run is over; this one was ended.", flush=True)
        return FENCED
    return SIGNAL_EXIT - code if code < 0 else code


class StopPassedOn:
    """Whether this task was asked to stop, and the command that is to hear of it.

    Where Slurm tracks processes by cgroups, as most sites have it, it signals a task alone; else all that a task has
    started, too: then the command hears of it twice.
    """

    def __init__(self) -> None:
        self.child: subprocess.Popen | None = None
        self.is_asked = False
        signal.signal(signal.SIGTERM, self._pass_on)

    def tell(self, child: subprocess.Popen) -> None:
        """Pass it on to this one, also what came before it began."""
        self.child = child
        if self.is_asked:
            child.send_signal(signal.SIGTERM)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.is_asked = True
        if self.child is not None:
            self.child.send_signal(signal.SIGTERM)  # nothing where it has ended


def run(command: list[str], start: Path, file: Path, asked: StopPassedOn) -> tuple[int, bool]:
    """Run the command, in its container if it has one, and leave nothing of it. -> as ``watched``"""
    kind, libc = os.environ.get(KIND, ""), ctypes.CDLL(None)
    with contained(command, start, os.environ | ranks(os.environ)) as (argv, env):
        try:
            # A container ends with its input: the pipe is this process's alone, and nothing is ever written.
            child = subprocess.Popen(
                argv,
                env=env,
                start_new_session=True,
                # Killed with -9, this process ends nothing: its child would live on, unknown to the next start.
                preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
                stderr=subprocess.STDOUT,
                stdin=subprocess.PIPE if kind == "docker" else subprocess.DEVNULL,
            )
        except OSError as error:
            print(f"{argv[0]}: {error.strerror} on {socket.gethostname()}", flush=True)
            return NOT_STARTED, False
        asked.tell(child)
        try:
            code, fenced = watched(child, start, file)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    return exit_code(kind, code), fenced


def watched(child: subprocess.Popen, start: Path, file: Path) -> tuple[int, bool]:
    """Wait for the command, and kill it once a newer start has begun, or its run is over and the time is, too, that it was
    given for a checkpoint. -> its exit code (negative: a signal), and whether that was it"""
    until = None
    while True:
        try:
            return child.wait(SECONDS_BETWEEN_LOOKS), False
        except subprocess.TimeoutExpired:
            if (seconds := seconds_left(start)) is not None:
                if seconds and until is None:
                    until = time.monotonic() + seconds
                    child.send_signal(signal.SIGTERM)
                if not seconds or until is None or time.monotonic() >= until:
                    os.killpg(child.pid, signal.SIGKILL)
                    return child.wait(), True
            with contextlib.suppress(OSError):
                os.utime(file)  # a sign of life


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
