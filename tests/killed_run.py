"""A step in a process of its own that is killed (SIGKILL) when it is about to touch its files for the n-th time."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

import torch

from dpo_core.contract.job import Job
from dpo_core.contract.job_registry import read_job
from tests.waiting import PATIENCE_SECONDS

TOUCHES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
FORKS = multiprocessing.get_context("forkserver")  # what is imported once is there in every child
FORKS.set_forkserver_preload(["tests.killed_run", "dpo_core.steps.train", "tests.tiny_stage"])


def run_until(job: Job, touch: int | None) -> int:
    """Run a job whose ``job.json`` is written until it touches its files for the ``touch``-th time, or to its end.

    -> exit code, -9 if it was killed
    """
    child = FORKS.Process(target=_run, args=(str(job.out_dir), touch))
    child.start()
    child.join(PATIENCE_SECONDS)
    child.kill()
    child.join()
    return child.exitcode


def count_touches(job: Job) -> int:
    """How often a job that is left alone touches its files."""
    assert run_until(job, -1) == 0
    return int((job.out_dir / "touches").read_text())


def _run(folder: str, touch: int | None) -> None:
    from tests.tiny_stage import run_here  # here: the fork server imports this module before it has forked

    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    job, seen = read_job(Path(folder) / "job.json"), 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event in TOUCHES and str(arguments[0]).startswith(folder):
            seen += 1
            if seen == touch:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    run_here(job)
    if touch == -1:
        (Path(folder) / "touches").write_text(str(seen))
