"""A container's first program: ``python -m dpo_core.in_container COMMAND...`` runs the command and passes SIGTERM on.

Whoever stops the container (the orchestrator, `docker stop`, a machine that shuts down) signals its first process. Passed
on as it is, the signal would end `accelerate launch` and with it the trainer; so it goes to the trainers, which write
a checkpoint. Standard library alone, as every container waits for it.
"""

import resource
import signal
import subprocess
import sys
from types import FrameType

from dpo_core.contract.process_group import ask_to_stop

MAX_OPEN_FILES = 65_536  # many shards, the sockets of many ranks; some engines allow a billion, and some programs close all
SIGNAL_EXIT = 128  # a shell's exit code for a child that a signal killed is this plus the signal


def bound_open_files() -> None:
    """Allow at most ``MAX_OPEN_FILES``, and all of these without asking for them, for whatever is started from here."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = MAX_OPEN_FILES if most == resource.RLIM_INFINITY else min(most, MAX_OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main(argv: list[str]) -> int:
    """Run ``argv`` to its end; returns its exit code."""
    child: subprocess.Popen | None = None
    asked = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        if child is not None:
            ask_to_stop(child.pid)

    signal.signal(signal.SIGTERM, stop)
    bound_open_files()
    # One stream, so that the engine keeps the order of lines: it stamps two streams in two threads.
    child = subprocess.Popen(argv, start_new_session=True, stderr=subprocess.STDOUT)
    if asked:  # between the two lines above
        ask_to_stop(child.pid)
    code = child.wait()
    return SIGNAL_EXIT - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
