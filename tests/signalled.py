"""A process that is asked to stop as Prefect asks: SIGTERM raises an exception in its main thread."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

from tests.waiting import wait_until

SECONDS_BETWEEN = 0.3


class Terminated(BaseException):
    """What SIGTERM raises."""


@contextlib.contextmanager
def asked_to_stop_twice(is_up: Callable[[], bool]) -> Iterator[None]:
    """Send this process SIGTERM once ``is_up``, and again while it heeds the first."""

    def terminate(*_: object) -> None:
        raise Terminated

    def ask() -> None:
        wait_until(is_up)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SECONDS_BETWEEN)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, terminate)
    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        asking.join()
        signal.signal(signal.SIGTERM, before)
