"""Which rank of a step was killed: from what torchrun and accelerate print, as they end with 1 whatever a rank died of.

torchrun lists every rank that failed once it has stopped the others::

    Failures:
    [1]:
      time      : 2026-03-01_17:40:00
      host      : n1
      rank      : 1 (local_rank: 1)
      exitcode  : -9 (pid: 4711)
    ...
    Root Cause (first observed failure):
    [0]:
      ...

Its time is to the second, and of ranks that it sees at once the first is the root. So a rank that was killed from outside
in the same second is the cause: what another one reported follows from it. What torchrun ends itself, it ends later
(SIGTERM, and SIGKILL half a minute after).
"""

import re
import signal
from dataclasses import dataclass
from datetime import datetime

FIELD = re.compile(r"^\s+(time|host|rank|exitcode)\s*: (\S+)")
ROOT = re.compile(r"^Root Cause\b")
# accelerate, of the one process that it starts itself
ALONE = re.compile(r"CalledProcessError: Command '\[.*'dpo_core'.*\]' died with <Signals\.\w+: (\d+)>")
SECONDS_OF_ONE_LOOK, LARGEST_LIST = 1.0, 65_536
# Not SIGABRT: a rank that finds its peers gone ends itself so (NCCL's watchdog).
FROM_OUTSIDE = frozenset((signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE))


@dataclass(frozen=True, slots=True)
class FailedRank:
    """A rank as torchrun lists it. ``code``: negative for a signal; ``time``: seconds."""

    rank: int
    host: str
    code: int
    time: float
    is_root: bool


class KilledRank:
    """Reads a step's lines as they come; memory does not grow with them."""

    def __init__(self) -> None:
        self._fields: dict[str, str] = {}
        self._in_root = False
        self._failed: dict[int, FailedRank] = {}
        self._alone = 0

    def take(self, line: str) -> None:
        """Look at a line, without the prefix of a node."""
        if found := FIELD.match(line):
            self._fields[found[1]] = found[2]
            if found[1] == "exitcode":
                self._end_of_a_rank()
        elif ROOT.match(line):
            self._in_root = True
        elif found := ALONE.search(line):
            self._alone = int(found[1])

    def _end_of_a_rank(self) -> None:
        fields, self._fields = self._fields, {}
        try:
            when = datetime.strptime(fields["time"], "%Y-%m-%d_%H:%M:%S").timestamp()
            rank, code = int(fields["rank"]), int(fields["exitcode"])
        except (KeyError, ValueError):  # a step's own words
            return
        if rank in self._failed or len(self._failed) < LARGEST_LIST:
            self._failed[rank] = FailedRank(rank, fields.get("host", ""), code, when, self._in_root)

    def cause(self) -> str:
        """Return which rank was killed by what; empty if none was, before others failed by themselves."""
        if self._alone:
            return f"its process was killed by {_name(self._alone)}."
        root = next((failed for failed in self._failed.values() if failed.is_root), None)
        if root is None:
            return ""
        if root.code < 0:
            return f"rank {root.rank} was killed by {_name(-root.code)}."
        for failed in sorted(self._failed.values(), key=lambda one: one.rank):
            if -failed.code in FROM_OUTSIDE and abs(failed.time - root.time) <= SECONDS_OF_ONE_LOOK:
                return f"rank {failed.rank} was killed by {_name(-failed.code)}."
        return ""


def _name(number: int) -> str:
    name = f" ({signal.Signals(number).name})" if number in set(signal.Signals) else ""
    return f"signal {number}{name}"
