"""One question to Slurm for all jobs that this process waits for, asked by whoever wants to know first."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from dpo_core.contract.errors import ConfigError
from tasks.launch.slurm.client import QueuedJob, SlurmAway, queue

log = logging.getLogger(__name__)


@dataclass
class Poll:
    """Jobs by name. Threads of a sweep share one: an answer that is fresh enough for one is so for all."""

    ask: Callable[[Iterable[str]], list[QueuedJob]] = queue
    lock: threading.Lock = field(default_factory=threading.Lock)
    names: dict[str, int] = field(default_factory=dict)  # -> how many watch it
    asked: float = -1e9  # monotonic
    about: frozenset[str] = frozenset()
    answer: "dict[str, list[QueuedJob]] | SlurmAway" = field(default_factory=dict)
    num_asked: int = 0

    def watch(self, name: str) -> None:
        """Ask about this name, too."""
        with self.lock:
            self.names[name] = self.names.get(name, 0) + 1

    def forget(self, name: str) -> None:
        """Do not ask about it any more."""
        with self.lock:
            self.names[name] -= 1
            if not self.names[name]:
                del self.names[name]

    def look(self, name: str, max_age_seconds: float) -> list[QueuedJob]:
        """Return the jobs of this name, as they were at most so long ago. Raises ``SlurmAway``, also if that was the
        answer then, or something went wrong with asking."""
        with self.lock:
            if name not in self.about or time.monotonic() - self.asked > max_age_seconds:
                self.about = frozenset(self.names) | {name}
                self.num_asked += 1
                try:
                    found: dict[str, list[QueuedJob]] = {}
                    for seen in self.ask(self.about):
                        found.setdefault(seen.name, []).append(seen)
                    self.answer = found
                except SlurmAway as away:
                    if not isinstance(self.answer, SlurmAway):
                        log.warning("%s Waiting for it. %s", away, away.meanwhile)
                    self.answer = away
                except ConfigError as refused:  # nothing that a job that is watched is to be ended for
                    self.answer = SlurmAway(refused.problem)
                self.asked = time.monotonic()
            if isinstance(self.answer, SlurmAway):
                raise self.answer
            return self.answer.get(name, [])


_POLLS: dict[str, Poll] = {}
_POLLS_LOCK = threading.Lock()


def poll_of_this_process() -> Poll:
    """Return the one of the cluster that SLURM_CONF names."""
    with _POLLS_LOCK:
        return _POLLS.setdefault(os.environ.get("SLURM_CONF", ""), Poll())
