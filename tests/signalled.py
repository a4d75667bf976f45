"""A process that is asked to stop as Prefect asks: SIGTERM raises an exception in its main thread."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from tests.waiting import beside, wait_until


class Terminated(BaseException):
    """What SIGTERM raises."""


@contextlib.contextmanager
def asked_to_stop_twice(
    is_up: Callable[[], bool], heeds: Callable[[], bool], go_on: Callable[[], object]
) -> Iterator[None]:
    """Send this process SIGTERM once ``is_up``, and again while it heeds the first: its step does when ``heeds``, and does
    not end before it is told to ``go_on``."""

    def terminate(*_: object) -> None:
        raise Terminated

    def ask(over: threading.Event) -> None:
        for is_time in (is_up, heeds):
            wait_until(lambda is_time=is_time: is_time() or over.is_set())
            if over.is_set():
                return
            os.kill(os.getpid(), signal.SIGTERM)
        go_on()

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with beside(ask):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)
