"""`make demo LAUNCHER=slurm`: run a command beside a Slurm cluster, a private one of two nodes if none answers.

python -m examples.slurm.run COMMAND...
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType

from dpo_core.contract.errors import PairlineError
from examples.slurm.private_cluster import PrivateCluster, find_program
from tasks.launch.slurm.nodes import least_node
from tasks.text.terminal import say

SIGNAL_EXIT = 128  # as a shell tells that a signal ended it
NEEDED = ("slurmctld", "slurmd", "sbatch", "srun")


def cluster_answers() -> bool:
    """Return whether a Slurm cluster can be used from here."""
    try:
        least_node("")
    except PairlineError:
        return False
    return True


class Passing:
    """Passes what asks this process to end on to the command: killed with it, the command would leave its jobs behind."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self.process is None:
            raise SystemExit(SIGNAL_EXIT + number)
        if number != signal.SIGINT:  # a terminal's reaches the command by itself
            self.process.send_signal(number)

    def run(self, command: list[str], environment: dict[str, str] | None = None) -> int:
        """Run the command to its end. -> its exit code, as a shell tells it"""
        self.process = subprocess.Popen(command, env=environment)
        code = self.process.wait()
        return SIGNAL_EXIT - code if code < 0 else code


def run_beside_a_cluster(command: list[str]) -> int:
    """Run the command; returns its exit code. Whatever ends it, a private cluster ends with it."""
    passing = Passing()
    if cluster_answers():
        return passing.run(command)
    if missing := [program for program in NEEDED if find_program(program) is None]:
        say(
            f"No Slurm cluster answers, and for a private one {', '.join(missing)} is missing. On Debian, as root:"
        )
        say("  apt-get install --no-install-recommends slurmctld slurmd slurm-client")
        return 10
    with tempfile.TemporaryDirectory(prefix="pairline-slurm-") as folder:
        cluster = PrivateCluster(Path(folder), num_cores=max(1, len(os.sched_getaffinity(0)) // 2))
        try:
            cluster.up()
            say(f"A private Slurm cluster of two nodes; to look at it:  SLURM_CONF={cluster.conf} squeue")
            return passing.run(command, cluster.environment)
        finally:
            cluster.down()


if __name__ == "__main__":
    sys.exit(run_beside_a_cluster(sys.argv[1:]))
