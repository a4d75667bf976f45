"""A limit on jobs in the queue: what is waited for, what is refused, and what a submission leaves whose answer was lost."""

import json
import threading
import time
from types import SimpleNamespace

import pytest

from dpo_core.contract.errors import ConfigError
from tasks.launch.context import Context, Stopped
from tasks.launch.launcher import Ended
from tasks.launch.slurm.client import BETWEEN, QueueFull
from tasks.launch.slurm.own_jobs import jobs_to_follow
from tasks.launch.slurm.room import Room
from tests.slurm_cluster.small_step import SmallStep
from tests.tasks.launch.slurm.recorded import KEY, RecordedSlurm, after, leaves, queued, write_queue

FULL = (
    'echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2\n'
    "echo \"sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size "
    'and/or time limits)" >&2\nexit 1'
)
LOST = (
    'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1'
)


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> RecordedSlurm:
    monkeypatch.setattr("tasks.launch.slurm.watch.SECONDS_BETWEEN_YOUNG", 0.1)
    monkeypatch.setattr("tasks.launch.slurm.room.SECONDS_BETWEEN_TRIES", 0.1)
    monkeypatch.setattr("tasks.launch.slurm.launcher.SECONDS_BEFORE_LOOKS", (0.0,))
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    return RecordedSlurm(tmp_path / "bin", monkeypatch)


def is_waited_for(step: SmallStep, full: QueueFull, patience_seconds: float = 0.0) -> bool:
    room = Room(Context(), patience_seconds)
    try:
        room.wait_for(full)
    except QueueFull:
        return False
    return True


def test_only_a_job_that_will_end_is_waited_for(slurm: RecordedSlurm, step: SmallStep, monkeypatch):
    full, command = QueueFull("full"), step.command()
    assert not is_waited_for(step, full)
    slurm.has_queued(queued(command, "7", "PENDING", "a", "JobHeldUser"))
    assert not is_waited_for(step, full)
    slurm.has_queued(queued(command, "7", "COMPLETING", "a"))
    assert is_waited_for(step, full, patience_seconds=60.0)  # its node may hang
    assert not is_waited_for(step, full)
    slurm.has_queued(queued(command, "7", "RUNNING", "a"))
    assert is_waited_for(step, full)
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # the orchestrator's own
    assert not is_waited_for(step, full)


def test_orchestrators_that_are_jobs_do_not_wait_for_each_other(
    slurm: RecordedSlurm, step: SmallStep, monkeypatch
):
    """Of two that wait for room, the later one gives up, which makes it."""
    full, now = QueueFull("full"), int(time.time())

    def orchestrator(job_id: str, at: int) -> str:
        told = queued(step.command(), job_id, "RUNNING", "a").split(BETWEEN)
        told[6:8] = ["orchestrator", json.dumps({"pairline-waits": at})]
        return BETWEEN.join(told)

    slurm.has_queued(orchestrator("7", now), orchestrator("8", now))
    slurm.does("scontrol", 'echo "JobId=7 JobName=orchestrator JobState=RUNNING"')
    assert not is_waited_for(step, full)  # on a login node
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert not is_waited_for(step, full)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert is_waited_for(step, full)
    assert f"update jobid=7 comment={json.dumps({'pairline-waits': now})[:20]}" in slurm.calls("scontrol")[-1]
    slurm.does("scontrol", 'echo "JobId=7 JobName=orchestrator Comment=mine"')
    assert is_waited_for(step, full)
    assert "update" not in slurm.calls("scontrol")[-1]
    slurm.has_queued(orchestrator("6", now - 3600))  # it found room, and is at work
    assert is_waited_for(step, full)


def test_the_last_job_may_end_between_the_refusal_and_the_look(slurm: RecordedSlurm, step: SmallStep):
    room, full = Room(Context(), 0.0), QueueFull("full")
    slurm.has_queued(queued(step.command(), "7", "RUNNING", "a"))
    room.wait_for(full)
    slurm.has_queued()
    room.wait_for(full)
    with pytest.raises(QueueFull):
        room.wait_for(full)


def test_a_limit_that_others_share_is_waited_for_and_not_without_end(slurm: RecordedSlurm, step: SmallStep):
    """GrpSubmitJobs; it may be 0."""
    full = QueueFull("full")
    full.is_shared = True
    assert is_waited_for(step, full, patience_seconds=60.0)
    assert not is_waited_for(step, full)


def test_a_limit_is_waited_for(slurm: RecordedSlurm, step: SmallStep):
    """A sweep may have more members than a site takes jobs."""
    others = queued(step.command(), "7", "RUNNING", "other").replace(step.command().name, "other")
    write_queue(slurm.folder / "others", [others])
    taken = f'{KEY}\necho "$key" >"$here/key"\n{leaves(step, 0)}\necho 48'
    slurm.does("sbatch", after(2, "sbatch", taken, FULL))
    slurm.does("squeue", 'case "$*" in *--name*) ;; *) cat "$here/others";; esac')
    assert step.run() == Ended(0)
    assert len(slurm.calls("sbatch")) == 3


def test_a_limit_that_no_end_of_a_job_helps_with_is_refused(slurm: RecordedSlurm, step: SmallStep):
    slurm.does("sbatch", FULL)
    with pytest.raises(ConfigError, match="QOSMaxSubmitJobPerUserLimit"):
        step.run()
    slurm.does("sbatch", FULL.replace("QOSMaxSubmitJobPerUserLimit", "QOSMaxWallDurationPerJobLimit"))
    with pytest.raises(ConfigError, match="QOSMaxWallDurationPerJobLimit"):
        step.run()


def lost_job_fills_the_queue(slurm: RecordedSlurm, step: SmallStep) -> None:
    """It is taken when sbatch has given up, and shows once another one has been refused for it."""
    write_queue(slurm.folder / "line", [queued(step.command(), "48", "RUNNING", "KEY")])
    slurm.does("sbatch", f'[ -e "$here/key" ] && {{\n{FULL}\n}}\n{KEY}\necho "$key" >"$here/key"\n{LOST}')


def test_a_submission_that_was_lost_and_fills_the_queue_is_followed(slurm: RecordedSlurm, step: SmallStep):
    lost_job_fills_the_queue(slurm, step)
    taken = '[ $(wc -l <"$here/sbatch.calls") -gt 1 ] || exit 0\nsed "s/KEY/$(cat "$here/key")/" "$here/line"'
    slurm.does("squeue", f'[ -e "$here/key" ] || exit 0\n{after(12, "squeue", leaves(step, 0), taken)}')
    assert step.run() == Ended(0)
    assert len(slurm.calls("sbatch")) == 2
    assert slurm.calls("scancel") == []


def test_a_run_that_is_stopped_while_it_waits_for_room_leaves_nothing(slurm: RecordedSlurm, step: SmallStep):
    """No secret, and no job of a submission whose answer was lost."""
    lost_job_fills_the_queue(slurm, step)
    shown = '[ $(wc -l <"$here/sbatch.calls") -gt 1 ] && [ ! -e "$here/scancel.calls" ] || exit 0'
    slurm.does(
        "squeue", f'[ -e "$here/key" ] || exit 0\n{shown}\nsed "s/KEY/$(cat "$here/key")/" "$here/line"'
    )
    stop = threading.Event()
    had = list[str]()

    def stop_when_it_waits(line: str) -> None:
        if "Waiting until others have ended" in line:
            had.extend(file.name for file in step.record.glob("secret-*"))
            stop.set()

    listener = SimpleNamespace(line=stop_when_it_waits, progress=print, end=lambda: None)
    context = Context(stop=stop, lines=listener, secrets={"HF_TOKEN": "given"})
    with pytest.raises(Stopped):
        step.run(context, secrets=("HF_TOKEN",))
    assert had == ["secret-HF_TOKEN"]
    assert list(step.record.glob("secret-*")) == []
    assert slurm.calls("scancel")[-1] == "48"


def test_time_in_a_full_queue_is_none_without_an_answer(slurm: RecordedSlurm, step: SmallStep, monkeypatch):
    monkeypatch.setattr("tasks.launch.slurm.room.SECONDS_BETWEEN_TRIES", 1.1)
    step.patience_seconds = 3.0
    write_queue(slurm.folder / "others", [queued(step.command(), "7", "RUNNING", "other")])
    taken = f'{KEY}\necho "$key" >"$here/key"\n{leaves(step, 0)}\necho 48'
    full_for_long = after(1, "sbatch", FULL, LOST)  # as long as an answer would be waited for
    slurm.does("sbatch", after(5, "sbatch", taken, after(4, "sbatch", LOST, full_for_long)))
    slurm.does("squeue", 'case "$*" in *--name*) ;; *) cat "$here/others";; esac')
    assert step.run() == Ended(0)


def test_what_is_followed_instead_is_neither_a_share_nor_an_earlier_job_that_ends(
    slurm: RecordedSlurm, step: SmallStep
):
    command = step.command()
    share, job = queued(command, "47_0", "RUNNING", "a", count=2), queued(command, "48", "PENDING", "b")
    slurm.has_queued(share, queued(command, "46", "COMPLETING", "c"), job)
    assert [seen.id for seen in jobs_to_follow(command)] == ["48"]
