"""A job that is watched while Slurm answers as other sites' does: lists that lack it, refusals, suspension, nodes that hang.

Answers are those of 22.05.8 unless a test says otherwise; ``docs/cluster.md`` says what was run.
"""

import shlex
import threading
import time

import pytest

from dpo_core.contract.errors import Cancelled, ConfigError, StepCrashed
from tasks.launch.cluster_job import ClusterJob
from tasks.launch.context import Context, Stopped
from tasks.launch.launcher import Ended
from tasks.launch.own_folder import make_own_folder
from tasks.launch.slurm.record import SuspendedTime
from tests.slurm_cluster.small_step import SmallStep
from tests.tasks.launch.slurm.recorded import KEY, RecordedSlurm, after, queued, start_lines

UNKNOWN = 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1'
NO_ACCOUNTING = 'echo "Slurm accounting storage is disabled" >&2; exit 1'


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> RecordedSlurm:
    monkeypatch.setattr("tasks.launch.slurm.watch.SECONDS_BETWEEN_YOUNG", 0.1)
    slurm = RecordedSlurm(tmp_path / "bin", monkeypatch)
    slurm.does("scontrol", UNKNOWN)
    slurm.does("sacct", NO_ACCOUNTING)
    slurm.does("sbatch", f'{KEY}\necho "$key" >"$here/key"\necho 48')
    return slurm


@pytest.fixture
def step(tmp_path) -> SmallStep:
    step = SmallStep(tmp_path, "", 1, {"cpus_per_node": 2, "poll_seconds": 0.1})
    step.command()
    make_own_folder(step.folder)
    step.record.mkdir()
    return step


def leaves(step: SmallStep, code: int | None) -> str:
    """Shell after which the job, once it is submitted, has left this end, or runs."""
    return (
        f'[ -e "$here/key" ] || exit 0\nkey=$(cat "$here/key")\n{start_lines(step.record, "", "$key", code)}'
    )


def test_a_job_that_the_list_lacks_is_asked_about_by_its_id(slurm: RecordedSlurm, step: SmallStep):
    """squeue ends with 0 and says nothing: a site's cache, which does not know a young job."""
    name = step.command().name
    shown = f'echo "JobId=48 JobName={name} UserId=you(1000) JobState=PENDING Reason=Priority Comment=(null)"'
    slurm.does("scontrol", after(3, "scontrol", leaves(step, 0), shown))
    assert step.run() == Ended(0)
    assert len(slurm.calls("sbatch")) == 1
    assert slurm.calls("scancel") == []


def test_a_job_whose_id_is_somebody_elses_is_gone(slurm: RecordedSlurm, step: SmallStep):
    slurm.does("scontrol", 'echo "JobId=48 JobName=other JobState=RUNNING"')
    with pytest.raises(StepCrashed, match="is gone"):
        step.run()
    assert slurm.calls("scancel") == []


@pytest.mark.parametrize("word", ["CANCELLED by 1000", "TIMEOUT", "disabled"])
def test_an_end_that_slurm_has_forgotten_is_what_accounting_says(
    slurm: RecordedSlurm, step: SmallStep, word: str
):
    """MinJobAge of some seconds: gone from squeue before it was asked. sacct of 24.11: a state may name who."""
    name = step.command().name
    if word != "disabled":
        slurm.does("sacct", f'printf "%s\\n" "other|COMPLETED" {shlex.quote(f"{name}|{word}")}')
    slurm.does("squeue", leaves(step, 20))
    expected = {
        "CANCELLED by 1000": (Cancelled, "was cancelled by someone"),
        "TIMEOUT": (Exception, "time limit"),
    }
    error, said = expected.get(word, (StepCrashed, "Slurm does not know it any more"))
    with pytest.raises(error, match=said):
        step.run()
    assert "--jobs=48" in slurm.calls("sacct")[0]


def test_a_question_that_goes_wrong_ends_no_job(slurm: RecordedSlurm, step: SmallStep):
    """munge is started again on the login node."""
    running = queued(step.command(), "48", "RUNNING", "KEY")
    (slurm.folder / "line").write_text(running + "\n")
    wrong = 'echo "slurm_load_jobs error: Protocol authentication error" >&2; exit 1'
    listed = 'sed "s/KEY/$(cat "$here/key")/" "$here/line"'
    first = '[ -e "$here/key" ] || exit 0'
    slurm.does(
        "squeue", f"{first}\n" + after(8, "squeue", leaves(step, 0), after(4, "squeue", wrong, listed))
    )
    assert step.run() == Ended(0)
    assert slurm.calls("scancel") == []


def test_a_node_whose_epilog_hangs_holds_nobody_up(slurm: RecordedSlurm, step: SmallStep, monkeypatch):
    monkeypatch.setattr("tasks.launch.slurm.watch.SECONDS_FOR_AN_EPILOG", 0.5)
    (slurm.folder / "line").write_text(queued(step.command(), "48", "COMPLETING", "KEY") + "\n")
    listed = f'{leaves(step, 0)}\nsed "s/KEY/$key/" "$here/line"'
    slurm.does("squeue", f'[ -e "$here/key" ] || exit 0\n{listed}')
    assert step.run() == Ended(0)


def test_a_suspended_job_is_ended_without_a_signal_that_it_cannot_get(slurm: RecordedSlurm, step: SmallStep):
    """22.05: "Job can not be altered now, try again later". What waits for the grace would wait for nothing."""
    (slurm.folder / "line").write_text(queued(step.command(), "48", "SUSPENDED", "KEY") + "\n")
    begun = leaves(step, None)
    ended = '[ -e "$here/scancel.calls" ] && exit 0'
    slurm.does("squeue", f'[ -e "$here/key" ] || exit 0\n{ended}\n{begun}\nsed "s/KEY/$key/" "$here/line"')
    slurm.does("scancel", leaves(step, -15))
    stop = threading.Event()
    began = time.monotonic()

    def stop_what_is_suspended(job: ClusterJob) -> None:
        if job.state == "SUSPENDED":
            stop.set()

    with pytest.raises(Stopped):
        step.run(Context(stop=stop, on_cluster_job=stop_what_is_suspended))
    assert slurm.calls("scancel") == ["48"]
    assert time.monotonic() - began < 20  # the grace


def test_standing_still_is_no_running_time():
    suspended = SuspendedTime()
    suspended.look(False)
    assert not suspended.is_now
    for is_suspended in (True, True, False, False):
        suspended.look(is_suspended)
        assert suspended.is_now == is_suspended
        time.sleep(0.05)
    assert 0.1 <= suspended.seconds < 0.15 + 5
    seconds = suspended.seconds
    suspended.look(False)
    assert suspended.seconds == seconds


FULL = (
    'echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2\n'
    "echo \"sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size "
    'and/or time limits)" >&2\nexit 1'
)


def test_a_limit_on_jobs_in_the_queue_is_waited_for(slurm: RecordedSlurm, step: SmallStep, monkeypatch):
    """A sweep may have more members than a site takes jobs."""
    monkeypatch.setattr("tasks.launch.slurm.room.SECONDS_BETWEEN_TRIES", 0.1)
    others = queued(step.command(), "7", "RUNNING", "other").replace(step.command().name, "other")
    (slurm.folder / "others").write_text(others + "\n")
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
