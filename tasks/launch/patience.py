"""What a launcher asks may be away for a while: an engine that is updated, a controller that starts again.

It is asked again until it answers, the run is being stopped, or patience ends.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from dpo_core.contract.errors import RemoteError
from tasks.launch.context import Context

log = logging.getLogger(__name__)
T = TypeVar("T")


class NoAnswer(RemoteError):
    """Who is asked does not answer; what it runs may run on."""

    seconds_between_tries: ClassVar[float] = 1.0
    longest_seconds: ClassVar[float] = math.inf  # for which it makes sense to wait, however patient one is
    meanwhile: ClassVar[str] = ""  # what becomes of that which it runs


@dataclass
class Silence:
    """Since when there is no answer. ``seconds``: for how long it is borne."""

    seconds: float
    _since: float = math.inf  # monotonic
    _of_a_kind_since: float = math.inf
    _kind: type[NoAnswer] = NoAnswer

    def end(self) -> None:
        """Take that there is an answer."""
        self._since, self._of_a_kind_since = math.inf, math.inf

    def is_too_long(self, away: NoAnswer) -> bool:
        """Take that there is no answer again. -> whether it is to be waited for no longer"""
        now = time.monotonic()
        if type(away) is not self._kind:
            self._kind, self._of_a_kind_since = type(away), math.inf
        self._since, self._of_a_kind_since = min(self._since, now), min(self._of_a_kind_since, now)
        longest = min(self.seconds, away.longest_seconds)
        return now - self._since >= self.seconds or now - self._of_a_kind_since >= longest


def patiently(ask: Callable[[], T], context: Context, seconds: float) -> T:
    """Ask until there is an answer. Raises ``NoAnswer`` after so long without one, ``Stopped``."""
    silence, warned = Silence(seconds), False
    while True:
        try:
            return ask()
        except NoAnswer as away:
            if silence.is_too_long(away):
                raise
            if not warned:
                wait = min(seconds, away.longest_seconds)
                log.warning("%s Waiting up to %.0f s for it. %s", away, wait, away.meanwhile)
                warned = True
            context.raise_if_stopped()
            context.sleep(away.seconds_between_tries)
