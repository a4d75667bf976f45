"""``pairline watch``: a run as it goes on, on a terminal, from its files alone. It may be started and left at any time."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.live import Live

from flows.terminal.watch_view import run_view
from tasks.report.page import SECONDS_BETWEEN_LOOKS, write_report
from tasks.run.folder import read_run
from tasks.run.followed import FollowedFiles
from tasks.run.live import RunLook
from tasks.run.state import is_over
from tasks.text.terminal import draw

SHARE_OF_A_CORE = 0.1  # that looking may take from a training on the same machine


def watch_run(folder: Path, console: Console, every: float, once: bool = False) -> None:
    """Run ``pairline watch``. ``every``: seconds between two looks. Where no screen can be drawn on, it is drawn once."""
    if once or not console.is_terminal or console.is_dumb_terminal:
        draw(console, run_view(RunLook(folder).look(), console.width))
    else:
        follow(folder, console, every)


def follow(folder: Path, console: Console, every: float) -> None:
    """Draw it again and again, on a screen of its own, until the run has ended or a person interrupts; then once more
    where it stays to be read."""
    look = RunLook(folder)
    with Live(console=console, screen=True, auto_refresh=False) as live, leaving_is_no_error():
        for _ in paced(every):
            run = look.look()
            live.update(run_view(run, console.width, console.height), refresh=True)
            if is_over(run.files.record):
                break
    draw(console, run_view(look.look(), console.width))


def follow_report(folder: Path) -> None:
    """Write a run's page again and again, until the run has ended or a person interrupts."""
    followed = FollowedFiles()  # logs and metrics may grow to any length, and are read once
    with leaving_is_no_error():
        for _ in paced(SECONDS_BETWEEN_LOOKS):
            over = is_over(read_run(folder))  # asked first: the last page is one of the end
            write_report(folder, followed)
            if over:
                break


@contextlib.contextmanager
def leaving_is_no_error() -> Iterator[None]:
    """Let Ctrl-C end what is inside: the run goes on, only who looked at it leaves."""
    with contextlib.suppress(KeyboardInterrupt):
        yield


def paced(every: float) -> Iterator[None]:
    """Yield every so many seconds, or more rarely where what is done in between takes much of a core."""
    while True:
        began = time.process_time()
        yield
        time.sleep(max(every, (time.process_time() - began) * (1 / SHARE_OF_A_CORE - 1)))
