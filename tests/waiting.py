"""Waiting for what other processes do: until it holds, and no longer than it may take on a busy machine."""

import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")
PATIENCE_SECONDS = 540.0  # a busy machine takes five times what an idle one does


def wait_until(
    condition: Callable[[], Value],
    what: str = "what was to come",
    tell: Callable[[], str] = lambda: "",
    *,
    seconds: float = PATIENCE_SECONDS,
    pause: float = 0.05,
    of: subprocess.Popen | None = None,
) -> Value:
    """Wait for the first true value of ``condition``, ``pause`` seconds between looks, and return it.

    Fails after ``seconds``, or as soon as the process ``of`` has ended without it. ``tell``: what there is to say then.
    """
    deadline = time.monotonic() + seconds
    while True:
        ended = of is not None and of.poll() is not None
        if value := condition():
            return value
        assert not ended, f"Exit code {of and of.poll()} before {what}. {tell()}"
        assert time.monotonic() < deadline, f"Waited {seconds:g} s in vain for {what}. {tell()}"
        time.sleep(pause)
