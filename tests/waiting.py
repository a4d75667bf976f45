"""Waiting for what other processes do: until it holds, and no longer than it may take on a busy machine."""

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

Value = TypeVar("Value")
PATIENCE_SECONDS = 540.0  # a busy machine takes five times what an idle one does
SHARE_OF_LOOKS, LONGEST_PAUSE = 0.1, 1.0


class Pause:
    """Between two looks. A look at a server or an engine costs as much there as here, and kept a core busy at twenty a
    second: what takes this thread long to ask is asked less often, so that looking takes a tenth of its time at most. Of its
    own time: a look at a file is quick on a busy machine, too, and what it looks for may not last."""

    def __init__(self, seconds: float = 0.05) -> None:
        self.seconds, self._since = seconds, time.thread_time()

    def __call__(self) -> None:
        """Sleep, after a look that began when the last pause ended."""
        took = time.thread_time() - self._since
        time.sleep(max(self.seconds, min(took * (1 / SHARE_OF_LOOKS - 1), LONGEST_PAUSE)))
        self._since = time.thread_time()


def wait_until(
    condition: Callable[[], Value],
    what: str = "what was to come",
    tell: Callable[[], str] = lambda: "",
    *,
    seconds: float = PATIENCE_SECONDS,
    pause: float = 0.05,
    of: subprocess.Popen | None = None,
) -> Value:
    """Wait for the first true value of ``condition``, at least ``pause`` seconds between looks, and return it.

    Fails after ``seconds``, or as soon as the process ``of`` has ended without it. ``tell``: what there is to say then.
    """
    deadline = time.monotonic() + seconds
    between = Pause(pause)
    while True:
        ended = of is not None and of.poll() is not None
        if value := condition():
            return value
        assert not ended, f"Exit code {of and of.poll()} before {what}. {tell()}"
        assert time.monotonic() < deadline, f"Waited {seconds:g} s in vain for {what}. {tell()}"
        between()


@contextlib.contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """``work`` in a thread of its own while the block runs: it ends once the event that it is given is set."""
    over = threading.Event()
    thread = threading.Thread(target=work, args=(over,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
