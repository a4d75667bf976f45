"""Progress of a step whose shares are jobs of their own: one line out of all of theirs, and where the array stands."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from dpo_core.contract.progress import MARK, ProgressEvent
from tasks.launch.context import Context
from tasks.launch.launcher import CommandSpec
from tasks.launch.slurm.client import QueuedJob
from tasks.launch.slurm.shown import cluster_job

SECONDS_A_SHARE = 1 / 64  # the files of many shares are looked at less often
SECONDS_BETWEEN_PAGES = 2.0


@dataclass
class SharesProgress:
    """One line of progress out of those of all shares, of which some have not begun."""

    count: int
    seen: dict[int, ProgressEvent] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)

    def merged(self, share: int, event: ProgressEvent) -> str:
        """Return the line once this share has told where it stands."""
        self.seen[share] = event
        each = sum(event.total for event in self.seen.values()) / len(self.seen)
        ended = {one: self.seen[one].total if one in self.seen else each for one in self.done}
        at_work = [one for number, one in self.seen.items() if number not in self.done]
        done = sum(ended.values()) + sum(one.done for one in at_work)
        update = {
            "done": round(done),
            "total": round(each * self.count),
            "rate": sum(one.rate for one in at_work),
        }
        return json.dumps({MARK: "progress", **event.model_copy(update=update).model_dump()})


@dataclass
class SharesShown:
    """Where the array stands, for the run's lines and its page."""

    command: CommandSpec
    context: Context
    arrays: list[str] = field(default_factory=list)  # ids, in the order of their submission
    said: str = ""
    showed: float = -1e9  # monotonic

    def show(
        self, progress: SharesProgress, seen: Sequence[QueuedJob | None], keys: Sequence[str], over: bool
    ) -> None:
        """Tell it when it has changed, or is ``over``. ``seen``: the jobs of shares as the queue tells them, None before
        that; ``keys``: of each share's newest job."""
        states = Counter(job.state if job else "SUBMITTED" for job in seen)
        standing = [f"{len(progress.done)} of {progress.count} done"]
        where = ", ".join([*standing, *(f"{n} {state}" for state, n in sorted(states.items()))])
        seconds = max(SECONDS_BETWEEN_PAGES, 4 * progress.count * SECONDS_A_SHARE)
        if not over and (where == self.said or time.monotonic() - self.showed < seconds):
            return
        self.said, self.showed = where, time.monotonic()
        self.context.tell_line(f"Shares of step {self.command.step}: {where}.")
        if keys:
            first, ids = next(filter(None, seen), None), ",".join(self.arrays)
            self.context.tell_cluster_job(cluster_job(self.command, ids, keys, first, where))
