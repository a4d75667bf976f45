"""A short job of two ranks with a cluster and an orchestrator of its own, and what of it can be killed."""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from examples.slurm.private_cluster import PrivateCluster
from tasks.launch.launcher import Node
from tests.slurm_cluster.small_step import SmallStep

LAST = 20
FORK = multiprocessing.get_context("fork")
SECONDS_AWAY = 2.0  # for which a daemon is gone
COUNTING = f"""
import fcntl
if rank:
    while not Path("done").exists():
        time.sleep(0.1)
    sys.exit(0)
lock = open("lock", "w")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    Path("overlap").touch()
Path("checkpoints").mkdir(exist_ok=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(20))
for number in range(len(list(Path("checkpoints").iterdir())), {LAST}):
    line = f"number {{number}} of {{os.getpid()}}"
    print(line, flush=True)
    with open("printed", "a") as printed:
        printed.write(line + "\\n")
    Path(f"checkpoints/step-{{number:08d}}").write_text(str(time.time()))
    time.sleep(0.1)
Path("done").touch()
"""


@dataclass
class Trial:
    """A cluster, a step, and the orchestrator that is at work at present."""

    root: Path
    cluster: PrivateCluster
    orchestrator: BaseProcess | None = None

    @property
    def step(self) -> SmallStep:
        compute = {"num_processes": 2}
        return SmallStep(self.root / "run", COUNTING, 2, {"cpus_per_node": 2}, compute, 600.0)

    def start_orchestrator(self) -> None:
        self.orchestrator = FORK.Process(target=self._orchestrate)
        self.orchestrator.start()

    def _orchestrate(self) -> None:
        os.environ["SLURM_CONF"] = str(self.cluster.conf)
        with open(self.root / "orchestrators.txt", "a") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        ended = self.step.run(node=Node(0, 1))
        print(ended, flush=True)
        os._exit(0 if ended.exit_code == 0 else 1)

    @property
    def counted(self) -> int:
        checkpoints = self.step.folder / "checkpoints"
        return len(list(checkpoints.iterdir())) if checkpoints.is_dir() else 0

    @property
    def node(self) -> str:
        """Where the job runs, or the first."""
        starts = sorted(self.step.record.glob("*/started"), key=lambda file: file.stat().st_mtime)
        return starts[-1].read_text().split()[2] if starts else self.cluster.nodes[0]

    def kill_process(self, what: Callable[[list[str]], bool]) -> bool:
        """Kill one process of this trial. -> whether it was there"""
        for pid, argv in processes():
            if any(str(self.root) in part for part in argv) and what(argv):
                os.kill(pid, 9)
                return True
        return False


def processes() -> Iterator[tuple[int, list[str]]]:
    """Yield what runs on this machine."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            yield int(place.name), (place / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue


def process_on(node: str, is_meant: Callable[[list[str]], bool]) -> int | None:
    """The process of a job there whose arguments are those that are meant."""
    place = f"SLURMD_NODENAME={node}".encode()
    for pid, argv in processes():
        with contextlib.suppress(OSError):  # it has ended
            if is_meant(argv) and place in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                return pid
    return None


def _orchestrator(trial: Trial) -> bool:
    assert trial.orchestrator
    trial.orchestrator.kill()
    return True


def _controller(trial: Trial) -> bool:
    trial.cluster.kill_controller()
    time.sleep(SECONDS_AWAY)
    trial.cluster.start_controller()
    return True


def _orchestrator_and_controller(trial: Trial) -> bool:
    return _orchestrator(trial) and _controller(trial)


def _daemon(trial: Trial) -> bool:
    node = trial.node
    trial.cluster.kill_node(node)
    time.sleep(SECONDS_AWAY)
    trial.cluster.start_node(node)
    return True


def _rank(trial: Trial) -> bool:
    return trial.kill_process(
        lambda argv: "-c" in argv and "dpo_core.in_slurm" not in argv and "srun" not in argv[0]
    )


def _task(trial: Trial) -> bool:
    return trial.kill_process(lambda argv: "dpo_core.in_slurm" in argv and "srun" not in argv[0])


def _batch(trial: Trial) -> bool:
    return trial.kill_process(lambda argv: any(part.endswith("slurm_script") for part in argv))


def _srun(trial: Trial) -> bool:
    return trial.kill_process(lambda argv: argv[0].endswith("srun"))


# Each says whether what it kills was there; else it is tried again.
FAULTS: dict[str, Callable[[Trial], bool]] = {
    "orchestrator": _orchestrator,
    "slurmctld, back after 2 s": _controller,
    "both of them at once": _orchestrator_and_controller,
    "slurmd, back after 2 s": _daemon,
    "a rank": _rank,
    "in_slurm of a rank": _task,
    "the batch script": _batch,
    "srun": _srun,
}
