"""Kills at random moments of a short job of two ranks: one result, one job at a time, no line twice, nothing lost.

    python -m tests.slurm_cluster.kills --runs 100 --seconds 3000 --side-by-side 4

Every run has a cluster of its own. What ends with an error is started again, as Prefect's retries do. A moment is a number
that the job has counted to, so that it is as random on a busy machine.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

from examples.slurm.private_cluster import PrivateCluster
from tests.slurm_cluster.trial import FAULTS, FORK, LAST, Trial, processes

MOST_ORCHESTRATORS = 8


@dataclass
class Outcome:
    """One run. ``problems`` is empty if nothing was lost and nothing was there twice."""

    fault: str
    seed: int
    at: int  # what the job had counted to; -1: before it began, 20: after its last number
    longest_pause: float = 0.0  # seconds between two numbers, or from the kill to the first one
    seconds: float = 0.0
    num_starts: int = 0
    num_again: int = 0  # numbers computed twice
    num_unseen: int = 0  # lines that the killed one had not passed on
    problems: list[str] = field(default_factory=list)


def run_once(fault: str, seed: int, seconds: float = 600.0) -> Outcome:
    """Run the job, kill at a random moment, and look at what came of it."""
    chance = random.Random(seed)
    outcome = Outcome(fault, seed, at=chance.randrange(-1, LAST + 1))
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        trial = Trial(Path(folder), PrivateCluster(Path(folder) / "slurm"))
        try:
            trial.cluster.up()
            _run(trial, outcome, chance, seconds)
            _look(trial, outcome)
        finally:
            if trial.orchestrator:
                trial.orchestrator.kill()
            trial.cluster.down()
            _end_what_is_left(trial)
    return outcome


def _end_what_is_left(trial: Trial) -> None:
    """Slurm's own programs that tell the controller of an end for half a minute, and have it in their environment alone."""
    mark = str(trial.root).encode()
    for pid, argv in processes():
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            if mark in environment or any(str(trial.root) in part for part in argv):
                os.kill(pid, signal.SIGKILL)


def _run(trial: Trial, outcome: Outcome, chance: random.Random, seconds: float) -> None:
    began, killed = time.monotonic(), 0.0
    trial.start_orchestrator()
    num_orchestrators = 1
    while time.monotonic() - began < seconds:
        if not killed and (trial.counted >= outcome.at):
            time.sleep(chance.uniform(0, 2.0 if outcome.at < 0 else 0.1))
            killed = time.time() if FAULTS[outcome.fault](trial) else 0.0
        assert trial.orchestrator
        if not trial.orchestrator.is_alive():
            trial.orchestrator.join()
            if trial.orchestrator.exitcode == 0:
                break
            if num_orchestrators == MOST_ORCHESTRATORS:
                outcome.problems.append("no result after eight starts")
                return
            num_orchestrators += 1
            trial.start_orchestrator()
        trial.cluster.start_now()
        time.sleep(0.1)
    else:
        outcome.problems.append(f"no result within {seconds:.0f} s")
    outcome.seconds = round(time.monotonic() - began, 1)
    written = sorted(file.stat().st_mtime for file in (trial.step.folder / "checkpoints").glob("*"))
    moments = sorted([*written, killed]) if killed else written
    outcome.longest_pause = round(max((b - a for a, b in pairwise(moments)), default=0.0), 1)


def _look(trial: Trial, outcome: Outcome) -> None:
    step = trial.step
    lines = [line for line in step.log_lines if line.startswith("number ")]
    printed = (step.folder / "printed").read_text().splitlines()
    outcome.num_starts = step.num_starts
    outcome.num_again = len(printed) - LAST
    outcome.num_unseen = len(set(printed) - set(lines))
    for is_wrong, problem in (
        (len(set(lines)) < len(lines), "a line is there twice"),
        (len(set(printed)) < len(printed), "a start has computed something twice"),
        (trial.counted != LAST, f"it ended at {trial.counted}"),
        ((step.folder / "overlap").exists(), "two at work at a time"),
        (bool(trial.cluster.jobs()), f"left in the queue: {trial.cluster.jobs()}"),
        (outcome.fault == "orchestrator" and outcome.num_unseen > 0, "lines lost"),
        (outcome.fault == "orchestrator" and outcome.num_again > 0, "computed twice"),
    ):
        if is_wrong:
            outcome.problems.append(problem)
    if outcome.problems:
        said = (trial.root / "orchestrators.txt").read_text()[-3000:]
        outcome.problems.append(f"{said}\n{trial.cluster.logs()}")


def table(outcomes: list[Outcome]) -> str:
    """Return a line for every fault, in Markdown."""
    rows = [
        "| killed with -9 | runs | lost | stood still for, median and most | again, of 20 | starts |",
        "|---" * 6 + "|",
    ]
    for fault in FAULTS:
        of_it = [one for one in outcomes if one.fault == fault]
        waited = [one.longest_pause for one in of_it]
        if of_it:
            lost = sum(bool(one.problems) for one in of_it)
            rows.append(
                f"| {fault} | {len(of_it)} | {lost or 'nothing'} | {statistics.median(waited):.1f} s, {max(waited):.1f} s "
                f"| {max(one.num_again for one in of_it)} | {max(one.num_starts for one in of_it) // 2} |"
            )
    return "\n".join(rows)


def run_many(faults: list[str], seed: int, seconds: float, side_by_side: int) -> list[Outcome]:
    """Run once for every fault, until the time is up; tells each as it ends."""
    until, outcomes = time.monotonic() + seconds, []
    with ProcessPoolExecutor(side_by_side, mp_context=FORK) as pool:
        running = [pool.submit(run_once, fault, seed + number) for number, fault in enumerate(faults)]
        for one in running:
            if time.monotonic() > until and one.cancel():
                continue
            outcomes.append(one.result())
            print(json.dumps(asdict(outcomes[-1])), flush=True)
    return outcomes


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=3000.0, help="no run begins after that")
    parser.add_argument("--side-by-side", type=int, default=2)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--fault", choices=list(FAULTS), action="append")
    told = parser.parse_args()
    chosen = told.fault or list(FAULTS)
    faults = [chosen[number % len(chosen)] for number in range(told.runs)]
    outcomes = run_many(faults, told.seed, told.seconds, told.side_by_side)
    print(table(outcomes))
    return any(one.problems for one in outcomes)


if __name__ == "__main__":
    sys.exit(main())
