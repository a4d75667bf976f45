"""A container's first program: ``python -m dpo_core.in_container COMMAND...`` runs the command and passes SIGTERM on.

Whoever stops the container (the orchestrator, `docker stop`, a machine that shuts down) signals its first process. Passed
on as it is, the signal would end `accelerate launch` and with it the trainer; so it goes to the trainers, which write
a checkpoint. In a job of a cluster, where nobody may be left to stop it, the container ends when its standard input does.
Standard library alone, as every container waits for it.
"""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType

from dpo_core.contract.process_group import ask_to_stop
from dpo_core.contract.rank_container import END_WITH_INPUT
from dpo_core.contract.reported_code import mark_of, report_of, reported_code

MAX_OPEN_FILES = 65_536  # many shards, the sockets of many ranks; some engines allow a billion, and some programs close all
SIGNAL_EXIT = 128  # a shell's exit code for a child that a signal killed is this plus the signal


def bound_open_files() -> None:
    """Allow at most ``MAX_OPEN_FILES``, and all of these without asking for them, for whatever is started from here."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = MAX_OPEN_FILES if most == resource.RLIM_INFINITY else min(most, MAX_OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _end_with_input(child: subprocess.Popen) -> None:
    """Kill the command once whoever started the container is gone. For a thread."""
    while os.read(0, 1 << 16):  # not sys.stdin: an interpreter that ends while a thread waits in it aborts
        pass
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def killed_for_memory(place: Path = Path("/sys/fs/cgroup")) -> bool:
    """Return whether the kernel killed a process of this container for memory; False where it does not tell."""
    for file in (place / "memory.events", place / "memory/memory.oom_control"):  # of cgroups v2 and v1
        with contextlib.suppress(OSError):
            counts = dict(line.split()[:2] for line in file.read_text().splitlines())
            return int(counts.get("oom_kill", 0)) > 0
    return False


def main(argv: list[str]) -> int:
    """Run ``argv`` to its end; returns its exit code."""
    child: subprocess.Popen | None = None
    asked = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        was_asked, asked = asked, True
        if child is not None and not was_asked:  # a second would kill a leader whose trainer has ended
            ask_to_stop(child.pid)

    report = report_of(argv)
    before = mark_of(report)
    signal.signal(signal.SIGTERM, stop)
    bound_open_files()
    # One stream, so that the engine keeps the order of lines: it stamps two streams in two threads.
    ends_with_input = os.environ.pop(END_WITH_INPUT, "") == "1"
    stdin = subprocess.DEVNULL if ends_with_input else None
    child = subprocess.Popen(argv, start_new_session=True, stdin=stdin, stderr=subprocess.STDOUT)
    if ends_with_input:
        threading.Thread(target=_end_with_input, args=(child,), daemon=True).start()
    if asked:  # between the two lines above
        ask_to_stop(child.pid)
    code = child.wait()
    if ends_with_input and code and killed_for_memory():
        print("oom_kill event in this container.", flush=True)
    if code < 0:
        return SIGNAL_EXIT - code
    # A rank of its own, in a job of a cluster, ends with the step's code.
    return code if ends_with_input or code == 0 else reported_code(report, code, before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
