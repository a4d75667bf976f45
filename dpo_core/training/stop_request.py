"""SIGTERM as a request to stop: at once before the first step, after the step at hand and its checkpoint from then on."""

import signal
from dataclasses import dataclass
from typing import NoReturn

from dpo_core.contract.errors import Preempted


@dataclass
class StopRequest:
    """``setting_up`` while there is nothing to save; the loop polls ``received`` after each step."""

    received: bool = False
    setting_up: bool = False

    def listen(self) -> None:
        """Answer SIGTERM from now on, as in set-up until ``set_up_is_over``."""
        self.setting_up = True
        signal.signal(signal.SIGTERM, self._receive)

    def set_up_is_over(self) -> None:
        """Let later signals wait for the step. Raises ``Preempted`` if one came that a library's ``except`` has
        swallowed.
        """
        self.setting_up = False
        if self.received:
            self.stop_now()

    def _receive(self, *_: object) -> None:
        """Of several, as Slurm may send two, the first alone ends set-up: the next would interrupt what it asked for."""
        is_first, self.received = not self.received, True
        if self.setting_up and is_first:
            self.stop_now()

    def stop_now(self) -> NoReturn:
        """Raise ``Preempted`` during set-up."""
        raise Preempted("Asked to stop during set-up: no step was taken, nothing is lost. Start again.")
