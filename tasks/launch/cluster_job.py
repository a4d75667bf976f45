"""A step's job on a cluster as its queue tells it, for who shows it: where it stands, and how its starts have ended."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JobStart:
    """One start of a step on a cluster. ``from_step``: of the newest checkpoint at its beginning; None without one.

    ``end``: why it ended, empty while it runs. Times are Unix seconds, by the node's clock.
    """

    job_id: str
    nodes: str
    began: float
    seconds: float
    from_step: int | None = None
    end: str = ""


@dataclass(frozen=True, slots=True)
class ClusterJob:
    """One look at it. ``state``: the queue's own word, "ENDED" where it does not know the job any more."""

    step: str
    id: str
    name: str
    state: str
    partition: str = ""
    nodes: str = ""
    reason: str = ""  # why it waits
    submitted: str = ""  # by the clock of the queue
    expected: str = ""  # to start, where it waits; empty where nobody knows
    starts: tuple[JobStart, ...] = ()
    log: str = ""
    commands: tuple[str, ...] = ()  # that show it and stop it

    @property
    def in_words(self) -> str:
        """Job, state, how often it has been started: one line of text."""
        waits = f", waits for {self.reason}" if self.reason else ""
        nodes = f" on {self.nodes}" if self.nodes else ""
        times = f", start {len(self.starts)}" if len(self.starts) > 1 else ""
        return f"Job {self.id} of step {self.step}: {self.state}{nodes}{waits}{times}"
