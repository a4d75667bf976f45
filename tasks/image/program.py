"""A program that takes minutes, run so that what it prints is seen while it works."""

import os
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence

from tasks.launch.launcher import OnLine

NUM_LAST_LINES = 20


def run_program(
    argv: Sequence[str], say: OnLine, env: Mapping[str, str] | None = None
) -> tuple[int, list[str]]:
    """Run a program to its end, each of its lines to ``say``. -> its exit code, and its last lines

    ``env`` is added to this process's. An interrupted call leaves no program behind. Raises ``OSError`` if it cannot be
    started.
    """
    last_lines: deque[str] = deque(maxlen=NUM_LAST_LINES)
    child = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | (env or {}),
    )
    assert child.stdout is not None, "it was started with a pipe"
    try:
        with child.stdout:
            for line in child.stdout:
                last_lines.append(line.rstrip())
                say(line.rstrip())
    except BaseException:
        child.kill()
        raise
    finally:
        child.wait()
    return child.returncode, list(last_lines)
