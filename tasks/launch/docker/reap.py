"""Stops and removes the containers that no live run owns.

A run that starts or watches a container holds the claim on its job's folder; the kernel drops it when the run dies. So a
container whose claim is free is orphaned, unless Prefect knows its run as not ended: it may be between two attempts. Where
the folder is not to be seen from here, the container's own deadline decides. A container in a job of a cluster belongs to
the task that started it, on the node where it runs. What has no label of ours, or not the name
that its labels make, is never touched: every container has the labels of its image, which anybody may have made.
"""

import contextlib
import logging
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dpo_core.contract.errors import PairlineError, StoreBusy
from dpo_core.contract.rank_container import DRIVER, process_mark
from tasks.launch.docker.container import DEADLINE, FLOW_RUN, FOLDER, GRACE, LABEL, RUN, STEP, name_by_labels
from tasks.launch.docker.engine import ContainerEngine
from tasks.launch.docker.engine_answers import Seen
from tasks.launch.docker.left_containers import DEFAULT_GRACE_SECONDS, put_away, stop
from tasks.launch.own_folder import claim
from tasks.launch.reaped import OnlyOf, Reaped, StateOf

log = logging.getLogger(__name__)
SECONDS_FOR_ITS_RUN = 120.0  # to stop a container over its time by itself


@dataclass(frozen=True, slots=True)
class Verdict:
    """Either why a container is orphaned, or why it is left alone."""

    orphaned: str = ""
    left: str = ""
    claimed: Path | None = None  # the job's folder if its claim is ours now, so that its log may be completed


def reap(
    engine: ContainerEngine,
    dry_run: bool = False,
    state_of: StateOf = lambda flow_run_id: "unknown",
    only_of: OnlyOf = None,
) -> list[Reaped]:
    """Go through all containers with our label, or those of some flow runs. ``state_of``: for whoever can ask
    Prefect."""
    found = []
    for seen in engine.ours():
        if only_of is not None and seen.labels.get(FLOW_RUN) not in only_of:
            continue
        with _judged(seen, state_of) as verdict:
            done = _end(engine, seen, verdict, dry_run) if verdict.orphaned else f"left alone: {verdict.left}"
        found.append(
            Reaped(
                seen.name,
                seen.labels.get(STEP, ""),
                seen.labels.get(RUN, ""),
                seen.labels.get(FOLDER, ""),
                verdict.orphaned,
                done,
            )
        )
    if not dry_run:
        engine.remove_unused_networks()
    return found


@contextlib.contextmanager
def _judged(seen: Seen, state_of: StateOf) -> Iterator[Verdict]:
    """Inside the block no run can become the container's owner."""
    assert seen.labels.get(LABEL) == "1"
    if seen.name != name_by_labels(seen.labels):
        yield Verdict(left="it has our labels, perhaps of its image, and not the name that they make")
        return
    if DRIVER in seen.labels:
        yield _judged_by_its_task(seen)
        return
    folder = _folder_here(seen)
    seconds_over = (
        time.time()
        - float(seen.labels.get(DEADLINE) or 0)
        - float(seen.labels.get(GRACE) or DEFAULT_GRACE_SECONDS)
    )
    overdue = seconds_over > SECONDS_FOR_ITS_RUN
    if folder is None:
        yield _judged_from_afar(seen, seconds_over, state_of)
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(claim(folder))
        except StoreBusy:
            yield (
                Verdict("its deadline has passed, and its run does not end it")
                if overdue
                else Verdict(left="a live run owns it")
            )
            return
        except (
            PairlineError,
            OSError,
        ) as error:  # another user's, a broken disk: the rest is still looked at
            yield (
                Verdict("its deadline has passed, and its claim cannot be looked at")
                if overdue
                else Verdict(left=f"its claim cannot be looked at: {error}")
            )
            return
        if not overdue and state_of(seen.labels.get(FLOW_RUN, "")) == "live":
            yield Verdict(left="its run has not ended, and may be between two attempts")
        else:
            yield Verdict("no live run owns it", claimed=folder)


def _judged_by_its_task(seen: Seen) -> Verdict:
    """A rank's container in a job of a cluster, which its task on the same node starts and ends. Only what a task left that
    was killed at the wrong moment is orphaned; a claim on the folder may be another machine's, and not be seen here."""
    host, _, rest = seen.labels[DRIVER].partition(":")
    if host != socket.gethostname():
        return Verdict(left=f"it is of a Slurm task on {host or 'another machine'}")
    pid = rest.partition(":")[0]
    if pid.isdigit() and process_mark(int(pid)) == seen.labels[DRIVER]:
        return Verdict(left="its Slurm task is at work")
    return Verdict("its Slurm task has ended")


def _judged_from_afar(seen: Seen, seconds_over: float, state_of: StateOf) -> Verdict:
    if seconds_over > 0:
        return Verdict("its deadline has passed, and its folder is not here")
    if state_of(seen.labels.get(FLOW_RUN, "")) == "over":
        return Verdict("its flow run has ended, and its folder is not here")
    return Verdict(left="its folder is not to be seen from here, and its deadline has not passed")


def _folder_here(seen: Seen) -> Path | None:
    folder = seen.labels.get(FOLDER)  # without the label Path("") would be the working directory
    with contextlib.suppress(OSError):
        if folder and Path(folder).is_dir():
            return Path(folder)
    return None


def _end(engine: ContainerEngine, seen: Seen, verdict: Verdict, dry_run: bool) -> str:
    what = "stopped and removed" if seen.running else "removed"
    if dry_run:
        return f"would be {what}"
    try:
        if verdict.claimed:
            put_away(engine, verdict.claimed, [seen])
        else:
            stop(engine, [seen])
            engine.remove(seen.id)
    except PairlineError as error:
        return f"failed: {error}"
    log.info("%s was %s.", seen.name, what)
    return what
