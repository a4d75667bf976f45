"""Steps as real child processes that tests watch, kill and start again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dpo_core.jobs import Job

ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "ACCELERATE_USE_CPU": "true",
              "PYTHONPATH": str(Path(__file__).parents[1])}
PATIENCE_SECONDS = 120


def start(job: Job, *launcher: str) -> subprocess.Popen:
    """``python -m dpo_core <step> --job job.json`` with one thread; ``launcher`` stands before ``-m``."""
    argv = [sys.executable, *launcher, "-m", "dpo_core", job.step, "--job", str(job.write())]
    log = (job.out_dir / "log.txt").open("a")
    return subprocess.Popen(argv, env=os.environ | ONE_THREAD, stdout=log, stderr=log)


def run_child(job: Job, *launcher: str) -> int:
    """Start and wait for the end. -> exit code"""
    return start(job, *launcher).wait(PATIENCE_SECONDS)


def signal_when(process: subprocess.Popen, signal_number: int, reached: Callable[[], bool]) -> int:
    """Send a signal as soon as ``reached()`` holds. -> exit code. Fails if the process ends before that."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not reached():
        assert process.poll() is None, f"the step ended with {process.returncode} before it was to be stopped"
        assert time.monotonic() < deadline, "the step never got to where it was to be stopped"
        time.sleep(0.002)
    process.send_signal(signal_number)
    return process.wait(PATIENCE_SECONDS)


def kill_when(process: subprocess.Popen, reached: Callable[[], bool]) -> None:
    """kill -9 as soon as ``reached()`` holds."""
    assert signal_when(process, signal.SIGKILL, reached) == -signal.SIGKILL


def metrics_of(out_dir: Path) -> list[dict]:
    """Complete lines of a run's metrics so far."""
    file = out_dir / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
