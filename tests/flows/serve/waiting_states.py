"""States that wait an hour for an answer. They are made in the test: an hour after the suite began, it may still run."""

from prefect.states import Paused, State, Suspended

KEY = "approval-1"


def suspended() -> State:
    """A state in which the run has no process."""
    return Suspended(timeout_seconds=3600, pause_key=KEY)


def paused() -> State:
    """A state in which the run's process waits."""
    return Paused(timeout_seconds=3600, pause_key=KEY)
