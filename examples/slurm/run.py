"""`make demo LAUNCHER=slurm`: run a command beside a Slurm cluster, a private one of two nodes if none answers.

python -m examples.slurm.run COMMAND...
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from dpo_core.contract.errors import PairlineError
from examples.slurm.private_cluster import PrivateCluster, find_program
from tasks.launch.slurm.client import least_node
from tasks.text.terminal import say

NEEDED = ("slurmctld", "slurmd", "sbatch", "srun")


def cluster_answers() -> bool:
    """Return whether a Slurm cluster can be used from here."""
    try:
        least_node("")
    except PairlineError:
        return False
    return True


def run_beside_a_cluster(command: list[str]) -> int:
    """Run the command; returns its exit code. Whatever ends it, a private cluster ends with it."""
    if cluster_answers():
        return subprocess.run(command, check=False).returncode
    if missing := [program for program in NEEDED if find_program(program) is None]:
        say(
            f"No Slurm cluster answers, and for a private one {', '.join(missing)} is missing. On Debian, as root:"
        )
        say("  apt-get install --no-install-recommends slurmctld slurmd slurm-client")
        return 10
    with tempfile.TemporaryDirectory(prefix="pairline-slurm-") as folder:
        cluster = PrivateCluster(Path(folder), num_cores=max(1, len(os.sched_getaffinity(0)) // 2))
        cluster.up()
        say(f"A private Slurm cluster of two nodes; to look at it:  SLURM_CONF={cluster.conf} squeue")
        try:
            return subprocess.run(command, check=False, env=cluster.environment).returncode
        except KeyboardInterrupt:
            return 130
        finally:
            cluster.down()


if __name__ == "__main__":
    sys.exit(run_beside_a_cluster(sys.argv[1:]))
