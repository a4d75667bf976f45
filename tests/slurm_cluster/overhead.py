"""What a step costs more as a Slurm job than as a process: both in turn, on an idle cluster of two nodes.

    python -m tests.slurm_cluster.overhead --runs 10

In all, with submission and the queue of an idle cluster; and from the start of the job's script, which loads the node's
login environment, to its end as the orchestrator sees it.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from examples.slurm.private_cluster import PrivateCluster
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import Context
from tasks.launch.launcher import Ended
from tasks.launch.process import ProcessLauncher
from tests.slurm_cluster.small_step import SmallStep

BODY, SETTINGS = "time.sleep(2)", {"poll_seconds": 30.0}


def run_as_process(step: SmallStep) -> Ended:
    """Run the same program as the process launcher would."""
    command = step.command()
    command = replace(command, argv=(*command.argv, *command.program))
    return ProcessLauncher(ComputeConfig()).run((command,), Context(), lambda line: None, lambda: None)


def seconds_more(root: Path, run: int) -> tuple[float, float]:
    """Return the seconds that the Slurm job took longer in all, and once it ran; one run of each."""
    process, slurm = (SmallStep(root / f"{name}-{run}", BODY, 1, SETTINGS) for name in ("process", "slurm"))
    began = time.time()
    assert run_as_process(process) == Ended(0)
    submitted = time.time()
    assert slurm.run() == Ended(0)
    ended = time.time()
    (started,) = slurm.record.glob("*.0/started")
    as_process = submitted - began
    return ended - submitted - as_process, ended - started.stat().st_mtime - as_process


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        cluster = PrivateCluster(Path(folder) / "slurm")
        cluster.up()
        os.environ["SLURM_CONF"] = str(cluster.conf)
        try:
            more = [seconds_more(Path(folder), run) for run in range(runs)]
        finally:
            cluster.down()
    for what, seconds in zip(("in all", "once the job ran"), zip(*more, strict=True), strict=True):
        print(
            f"{what}: {statistics.median(seconds):.1f} s more, {min(seconds):.1f} to {max(seconds):.1f}, of {runs} runs"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
