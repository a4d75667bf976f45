"""What starts a step: pure data in, an exit code out. Processes and containers implement the same protocol."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dpo_core.config import ComputeConfig
from dpo_core.progress import ProgressEvent

OnLine = Callable[[str], None]
OnProgress = Callable[[ProgressEvent], None]


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """One command, complete: nothing else decides what runs. ``folder`` is the job's own folder and the working
    directory."""

    argv: tuple[str, ...]
    folder: Path
    timeout_seconds: float
    env: dict[str, str] = field(default_factory=dict)  # added to the launcher's clean environment
    secrets: tuple[str, ...] = ()  # names of the secret variables that this step may see; usually none


class Launcher(Protocol):
    """Runs a command to its end, with the resources of ``compute``."""

    compute: ComputeConfig
    python: str  # interpreter on the side where the command runs

    def run(self, command: CommandSpec, on_line: OnLine) -> int:
        """Return the exit code (negative: killed by that signal). Every line the command prints goes to ``on_line``.

        Whatever ends this call (return, error, cancellation), the command no longer runs afterwards.
        Raises ``TimedOut`` after ``command.timeout_seconds``.
        """
        ...


_listener: ContextVar[OnProgress | None] = ContextVar("progress listener", default=None)


@contextmanager
def listening(on_progress: OnProgress) -> Iterator[None]:
    """Send the progress of all steps run inside the ``with`` block to ``on_progress`` (the command line's bars)."""
    token = _listener.set(on_progress)
    try:
        yield
    finally:
        _listener.reset(token)


def current_listener() -> OnProgress | None:
    """Who wants to hear of progress now, if anybody."""
    return _listener.get()
