"""Stopping a step is not cut short by being asked to stop once more."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let no further SIGTERM be heard inside: what the first one asked for is under way, and another exception in its
    middle would leave a step half stopped. Ctrl-C is, for a person in a hurry. Signals interrupt the main thread alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)  # ignored, programs would inherit it
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
