"""Steps as real child processes that tests watch, kill and start again."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from dpo_core.contract.job import Job, Result
from dpo_core.contract.results import read_error, read_result
from tests.waiting import PATIENCE_SECONDS, wait_until
from tests.warm.started import python_path

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "ACCELERATE_USE_CPU": "true",
    "PAIRLINE_DIE_WITH_PARENT": "1",
}
SMALL_CHUNKS = "tests.programs.small_chunks"


def start(job: Job, *launcher: str, module: str = "dpo_core") -> subprocess.Popen:
    """``python -m dpo_core <step> --job job.json`` with one thread, in its own process group; ``launcher`` stands before
    ``-m``, ``module`` in place of dpo_core."""
    argv = [sys.executable, *launcher, "-m", module, job.step, "--job", str(job.write())]
    log = (job.out_dir / "log.txt").open("a")
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": python_path()}
    return subprocess.Popen(argv, env=environment, stdout=log, stderr=log, start_new_session=True)


def start_ranks(job: Job, processes: int, module: str = SMALL_CHUNKS) -> subprocess.Popen:
    """The same as several processes, as the launcher starts them, with small chunks of logits; killed with their leader."""
    job.out_dir.mkdir(parents=True, exist_ok=True)
    settings = job.out_dir / "accelerate.json"
    settings.write_text(
        json.dumps(
            {
                "compute_environment": "LOCAL_MACHINE",
                "distributed_type": "NO",
                "use_cpu": True,
                "mixed_precision": "no",
                "debug": False,
            }
        )
    )
    several = ("--multi_gpu", "--main_process_port", "0") if processes > 1 else ()
    return start(
        job,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(settings),
        "--num_machines",
        "1",
        "--num_processes",
        str(processes),
        *several,
        "--num_cpu_threads_per_process",
        "1",
        "--dynamo_backend",
        "no",
        module=module,
    )


def run_ranks(job: Job, processes: int = 2, module: str = SMALL_CHUNKS) -> Result:
    """Start and wait for a result; a failure shows the step's own error and the end of its log."""
    code = start_ranks(job, processes, module).wait(PATIENCE_SECONDS)
    log = (job.out_dir / "log.txt").read_text()
    assert code == 0, f"{read_error(job)}\n{log[-3000:]}"
    return read_result(job)


def run_child(job: Job, *launcher: str) -> int:
    """Start and wait for the end. -> exit code"""
    return start(job, *launcher).wait(PATIENCE_SECONDS)


def signal_when(process: subprocess.Popen, signal_number: int, reached: Callable[[], bool]) -> int:
    """Send a signal as soon as ``reached()`` holds. -> exit code. Fails if the process ends before that."""
    wait_until(reached, "the moment to stop the step", of=process, pause=0.002)
    process.send_signal(signal_number)
    return process.wait(PATIENCE_SECONDS)


def kill_when(process: subprocess.Popen, reached: Callable[[], bool]) -> None:
    """kill -9 as soon as ``reached()`` holds. The step is dead when this returns."""
    assert signal_when(process, signal.SIGKILL, reached) == -signal.SIGKILL
    wait_for_death(process)


def wait_for_death(killed: subprocess.Popen) -> None:
    """Return once no process writes to the log of what ``start`` started: a forked step outlives its stand-in by a
    moment."""
    log = Path(killed.args[-1]).parent / "log.txt"  # type: ignore[index]  # beside job.json
    wait_until(lambda: not _writes_to(log), f"the end of all that writes {log}")


def _writes_to(log: Path) -> bool:
    for output in Path("/proc").glob("[0-9]*/fd/1"):
        with contextlib.suppress(OSError):
            if output.readlink() == log:
                return True
    return False


def metrics_of(out_dir: Path) -> list[dict]:
    """Complete lines of a run's metrics so far."""
    return _lines(out_dir / "metrics.jsonl")


def evaluations_in(out_dir: Path) -> list[dict]:
    """The same of the held-out pairs, measured while it trains."""
    return _lines(out_dir / "evaluations.jsonl")


def _lines(file: Path) -> list[dict]:
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
