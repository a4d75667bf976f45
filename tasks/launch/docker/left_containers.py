"""Puts away what is left of a step's earlier start: its containers stopped, the rest of their log copied, removed."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from tasks.launch.context import Context
from tasks.launch.docker.container import GRACE, line_prefix
from tasks.launch.docker.engine import ContainerEngine
from tasks.launch.docker.engine_answers import Seen
from tasks.launch.log_position import go_back_to_position, save_position, saved_times
from tasks.launch.step_log import LogFile

POLL_SECONDS = 0.2
DEFAULT_GRACE_SECONDS = 30.0
OF_NO_RUN = Context()


def put_away(
    engine: ContainerEngine, folder: Path, left: Sequence[Seen], context: Context = OF_NO_RUN
) -> None:
    """End what is left, for who holds the claim on the job's ``folder``.

    Raises ``EngineLost``, ``StoreError``; called again, it goes on without a gap or a repeat in the log.
    """
    stop(engine, left, context)
    _copy_rest_of_log(engine, folder, left)
    for seen in left:
        engine.remove(seen.id)


def stop(engine: ContainerEngine, containers: Sequence[Seen], context: Context = OF_NO_RUN) -> None:
    """Stop them as their launcher would: SIGTERM, a checkpoint, SIGKILL."""
    running = [seen for seen in containers if seen.running]
    for seen in running:
        engine.signal(seen.id, "SIGTERM")
    grace = max((float(seen.labels.get(GRACE) or DEFAULT_GRACE_SECONDS) for seen in running), default=0.0)
    until = time.monotonic() + grace
    while running := [now for seen in running if (now := engine.find(seen.id)) and now.running]:
        for seen in running if time.monotonic() >= until else ():
            engine.signal(seen.id, "SIGKILL")
        context.raise_if_stopped()
        time.sleep(POLL_SECONDS)


def _copy_rest_of_log(engine: ContainerEngine, folder: Path, left: Sequence[Seen]) -> None:
    """What they printed since their log was last read, to ``log.txt``."""
    if not left:
        return
    others = saved_times(folder)
    times = go_back_to_position(folder, [seen.id for seen in left])
    with (
        contextlib.suppress(OSError),
        contextlib.closing(LogFile(folder)) as file,
    ):  # full disks: told by steps
        for seen in left:
            for stamp, line in engine.log(seen.id, times.get(seen.id, ""), follow=False):
                file.write(line if line.startswith("{") else line_prefix(seen.labels) + line)
                times[seen.id] = stamp
    save_position(folder, others | times)
