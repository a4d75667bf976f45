"""Functions that several processes run together over gloo, forked from this one: real exchanges, no start-up."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from tests.waiting import PATIENCE_SECONDS


def together(function: Callable[[int], None], folder: Path, size: int = 2) -> None:
    """Run ``function(rank)`` on each of ``size`` processes, which are a group. What one raises fails the test."""

    def run(rank: int) -> None:
        try:
            dist.init_process_group("gloo", f"file://{folder / 'group'}", rank=rank, world_size=size)
            function(rank)
            code = 0
        except BaseException:
            (folder / f"failure-{rank}").write_text(traceback.format_exc())
            code = 1
        os._exit(code)  # nothing of this process is the child's to clean up

    processes = [
        multiprocessing.get_context("fork").Process(target=run, args=(rank,)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE_SECONDS)
        process.kill()
    failures = [file.read_text() for file in sorted(folder.glob("failure-*"))]
    assert not failures, "\n".join(failures)
    assert [process.exitcode for process in processes] == [0] * size
