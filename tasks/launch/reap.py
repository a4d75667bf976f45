"""Stops and removes the containers that no live run owns.

A run that starts or watches a container holds the claim on its job's folder; the kernel drops it when the run dies. So a
container whose claim is free is nobody's. Where the folder is not to be seen from here, the container's own deadline
decides. What has no label of ours is never touched.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dpo_core.errors import PairlineError, StoreBusy
from dpo_core.store import exclusive
from tasks.launch.container import DEADLINE, FLOW_RUN, FOLDER, GRACE, LABEL, RUN, STEP
from tasks.launch.docker import Engine, Seen
from tasks.launch.run_job import CLAIM

log = logging.getLogger(__name__)
POLL_SECONDS = 0.2
DEFAULT_GRACE_SECONDS = 30.0
SECONDS_FOR_ITS_RUN = 120.0  # to stop a container over its time by itself


@dataclass(frozen=True, slots=True)
class Reaped:
    """What was found and done (or would be: dry run)."""

    container: str
    step: str
    run: str
    folder: str
    reason: str  # why it is nobody's; empty if it is left alone
    done: str  # "stopped and removed", "removed", "left alone: ...", "failed: ..."


def reap(engine: Engine, dry_run: bool = False, is_over: Callable[[str], bool] = lambda flow_run_id: False) -> list[Reaped]:
    """Go through all containers with our label. ``is_over``: whether a flow run has ended, for whoever can ask Prefect."""
    found = []
    for seen in engine.ours():
        with _ownership(seen, is_over) as reason:
            done = _end(engine, seen, dry_run) if reason else f"left alone: {_why_left(seen)}"
        found.append(Reaped(seen.name, seen.labels.get(STEP, ""), seen.labels.get(RUN, ""), seen.labels.get(FOLDER, ""),
                            reason, done))
    if not dry_run:
        engine.remove_unused_networks()
    return found


@contextlib.contextmanager
def _ownership(seen: Seen, is_over: Callable[[str], bool]) -> Iterator[str]:
    """Why the container is nobody's, or "" if it is somebody's. Inside the block no run can become its owner."""
    assert seen.labels.get(LABEL) == "1"
    folder = Path(seen.labels.get(FOLDER, ""))
    grace = float(seen.labels.get(GRACE) or DEFAULT_GRACE_SECONDS)
    seconds_over = time.time() - float(seen.labels.get(DEADLINE) or 0)
    if not folder.is_dir():
        if seconds_over > grace:
            yield "its deadline has passed, and its folder is not here"
        else:
            yield "its flow run has ended, and its folder is not here" if is_over(seen.labels.get(FLOW_RUN, "")) else ""
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive(folder / CLAIM))
        except StoreBusy:
            overdue = seconds_over > grace + SECONDS_FOR_ITS_RUN
            yield "its deadline has passed, and its run does not end it" if overdue else ""
            return
        yield "no live run owns it"


def _why_left(seen: Seen) -> str:
    here = Path(seen.labels.get(FOLDER, "")).is_dir()
    return "a live run owns it" if here else "its folder is not to be seen from here, and its deadline has not passed"


def _end(engine: Engine, seen: Seen, dry_run: bool) -> str:
    what = "stopped and removed" if seen.running else "removed"
    if dry_run:
        return f"would be {what}"
    try:
        if seen.running:
            _stop(engine, seen)
        engine.remove(seen.id)
    except PairlineError as error:
        return f"failed: {error}"
    log.info("%s was %s.", seen.name, what)
    return what


def _stop(engine: Engine, seen: Seen) -> None:
    """As its launcher would: SIGTERM, a checkpoint, SIGKILL."""
    engine.signal(seen.id, "SIGTERM")
    until = time.monotonic() + float(seen.labels.get(GRACE) or DEFAULT_GRACE_SECONDS)
    while (now := engine.find(seen.id)) and now.running:
        if time.monotonic() >= until:
            engine.signal(seen.id, "SIGKILL")
        time.sleep(POLL_SECONDS)
