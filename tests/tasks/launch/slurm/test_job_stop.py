"""Shares that are stopped while Slurm does not answer; what one job does then stands in ``test_watch``."""

import subprocess
import threading

import pytest

from tasks.launch.context import Context, Stopped
from tests.tasks.launch.slurm.recorded import NO_ANSWER, RecordedSlurm, queued, start_lines
from tests.tasks.launch.slurm.test_array import COUNT, SmallStep, run, step

__all__ = ["step"]


def test_shares_are_asked_to_stop_where_slurm_cannot_tell_them(
    slurm: RecordedSlurm, step: SmallStep, monkeypatch
):
    """As a step of one job is. They ran on, until somebody reaped them."""
    monkeypatch.setattr("tasks.launch.slurm.job_stop.SECONDS_FOR_AN_ANSWER", 0.1)
    monkeypatch.setattr("tasks.launch.slurm.job_stop.SECONDS_BETWEEN_TRIES", 0.1)
    slurm.has_queued(
        *(queued(step.command(), f"49_{n}", "RUNNING", "abc", count=COUNT) for n in range(COUNT))
    )
    ranks = []
    for n in range(COUNT):
        about = (step.record, f"share-{n}-of-{COUNT}", f"abc-{n}")
        subprocess.run(("sh", "-c", start_lines(*about, None)), check=True)
        over = f"{step.record}/share-{n}-of-{COUNT}/abc-{n}.0/over"
        ended = start_lines(*about, 20)
        ranks.append(f"(until [ -s {over} ]; do sleep 0.02; done\n{ended}\n) >/dev/null 2>&1 &")
    first = '[ $(wc -l <"$here/scancel.calls") -gt 1 ] || {\n' + "\n".join(ranks) + "\n}"
    slurm.does("scancel", f"{first}\n{NO_ANSWER}")
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        run(step, Context(stop=stop))
    told = [file.read_text() for file in step.record.glob("share-*/*.0/over")]
    assert told == ["20\n"] * COUNT  # compute.stop_grace_seconds
