"""What many jobs of a sweep cost their orchestrator: questions to Slurm, CPU and memory, on a cluster of pretended nodes.

python -m tests.slurm_cluster.scale --jobs 200 --nodes 50 --seconds 60
"""

import argparse
import os
import resource
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from examples.slurm.private_cluster import PrivateCluster
from tasks.launch.context import Context
from tasks.launch.slurm.poll import poll_of_this_process
from tests.slurm_cluster.small_step import SmallStep

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Cost:
    """What this process has used so far."""

    seconds: float
    questions: int
    cpu_seconds: float  # its own; sbatch and squeue are children

    @classmethod
    def now(cls) -> "Cost":
        used = resource.getrusage(resource.RUSAGE_SELF)
        return cls(time.monotonic(), poll_of_this_process().num_asked, used.ru_utime + used.ru_stime)

    def told_since(self, before: "Cost") -> str:
        """Return the rates since then, with the memory that is used now."""
        minutes = (self.seconds - before.seconds) / 60
        cpu = (self.cpu_seconds - before.cpu_seconds) / (self.seconds - before.seconds)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return (
            f"{(self.questions - before.questions) / minutes:5.1f} questions a minute, {100 * cpu:5.2f} % of a core, "
            f"{pages * PAGE_BYTES / 2**20:.0f} MiB, {threading.active_count()} threads"
        )


def steps(root: Path, number: int, seconds: float) -> list[SmallStep]:
    """Return as many different jobs, each of which takes so long once it runs; asked about as often as users' are."""
    settings = {"poll_seconds": 30.0, "cpus_per_node": 1}
    return [SmallStep(root / f"{one}", f"time.sleep({seconds})", 1, settings) for one in range(number)]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0, help="that a job runs")
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two lines")
    parser.add_argument("--at-most", type=float, default=600.0, help="seconds; then all are cancelled")
    told = parser.parse_args()
    stop = threading.Event()
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        cluster = PrivateCluster(Path(folder) / "slurm", told.nodes, num_cores=1)
        cluster.up()
        os.environ["SLURM_CONF"] = str(cluster.conf)
        began = before = Cost.now()
        threads = [
            threading.Thread(target=step.run, args=(Context(stop=stop),), daemon=True)
            for step in steps(Path(folder), told.jobs, told.seconds)
        ]
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                time.sleep(told.every)
                now, states = Cost.now(), [state for _, state in cluster.jobs()]
                waiting, running = states.count("PENDING"), states.count("RUNNING")
                at = f"{now.seconds - began.seconds:5.0f} s: {waiting:3} wait, {running:3} run"
                print(f"{at}; {now.told_since(before)}", flush=True)
                before = now
                if now.seconds - began.seconds > told.at_most:
                    stop.set()
            print(f"all: {Cost.now().told_since(began)}")
        finally:
            stop.set()
            cluster.down()
    return 0


if __name__ == "__main__":
    sys.exit(main())
