"""A job that is watched while Slurm answers as other sites' does: lists that lack it, refusals, suspension, nodes that hang.

Answers are those of 22.05.8 unless a test says otherwise; ``docs/cluster.md`` says what was run.
"""

import shlex
import threading
import time

import pytest

from dpo_core.contract.errors import Cancelled, StepCrashed, TimedOut
from tasks.launch.cluster_job import ClusterJob
from tasks.launch.context import Context, Stopped
from tasks.launch.launcher import Ended
from tasks.launch.slurm.client import SlurmAway, parse_queue
from tasks.launch.slurm.followed import Followed
from tasks.launch.slurm.job_log import JobLog
from tasks.launch.slurm.own_jobs import has_kept_more, kept
from tasks.launch.slurm.poll import Poll
from tasks.launch.slurm.record import SuspendedTime
from tasks.launch.slurm.shown import cluster_job
from tasks.launch.slurm.watch import JobWatch
from tests.slurm_cluster.small_step import SmallStep
from tests.tasks.launch.slurm.recorded import (
    KEY,
    NO_ANSWER,
    RecordedSlurm,
    after,
    leaves,
    queued,
    write_queue,
)
from tests.tasks.launch.slurm.test_record import make_start

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


@pytest.mark.parametrize("word", ["CANCELLED by 0", "TIMEOUT", "disabled"])
def test_an_end_that_slurm_has_forgotten_is_what_accounting_says(
    slurm: RecordedSlurm, step: SmallStep, word: str
):
    """MinJobAge of some seconds: gone from squeue before it was asked. sacct of 24.11: a state may name who."""
    name = step.command().name
    if word != "disabled":
        slurm.does("sacct", f'printf "%s\\n" "other|COMPLETED" {shlex.quote(f"{name}|{word}")}')
    slurm.does("squeue", leaves(step, 20))
    expected = {
        "CANCELLED by 0": (Cancelled, "was cancelled by user root"),
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
    for is_suspended in (False, True, True, False, False):
        suspended.look(is_suspended)
        time.sleep(0.05)
    assert 0.1 <= suspended.seconds < 0.15 + 5
    seconds = suspended.seconds
    suspended.look(False)
    assert suspended.seconds == seconds


def test_standing_still_does_not_count_once_a_job_is_over(slurm: RecordedSlurm, step: SmallStep):
    """What is left of a step's time after a job of a chain."""
    make_start(step.record, "abc.0", started="1000 48 n1", exit="20 1100")
    job = Followed("abc", "48", step.record, JobLog(step.record / "abc.log", 0, has_labels=False))
    limits = step.launcher.limits(step.command(), 0.0)
    watch = JobWatch(step.command(), job, limits, Poll(), Context(), print)
    watch.suspended.seconds = 60.0
    assert watch.spent_seconds() == 40.0


def test_a_young_job_that_the_list_lacks_is_ended_with_its_run(slurm: RecordedSlurm, step: SmallStep):
    """Ctrl-C just after the submission."""
    pending = f'echo "JobId=48 JobName={step.command().name} JobState=PENDING"'
    slurm.does("scontrol", f'[ -e "$here/scancel.calls" ] || {{ {pending}; exit 0; }}\n{UNKNOWN}')
    stop = threading.Event()
    slurm.does("sbatch", f'{KEY}\necho "$key" >"$here/key"\necho 48')
    stop.set()
    with pytest.raises(Stopped):
        step.run(Context(stop=stop))
    assert slurm.calls("scancel") == ["48"]


def test_what_went_on_since_it_was_suspended_is_asked_to_stop(slurm: RecordedSlurm, step: SmallStep):
    for state in ("SUSPENDED", "RUNNING"):
        write_queue(slurm.folder / state, [queued(step.command(), "48", state, "KEY")])
    state = '[ -e "$here/resumed" ] && state=RUNNING || state=SUSPENDED'
    ended = '[ -e "$here/scancel.calls" ] && exit 0'
    listed = f'{ended}\n{leaves(step, None)}\n{state}\nsed "s/KEY/$key/" "$here/$state"'
    slurm.does("squeue", f'[ -e "$here/key" ] || exit 0\n{listed}')
    slurm.does("scancel", leaves(step, -15))
    stop = threading.Event()

    def resume(job: ClusterJob) -> None:
        if job.state == "SUSPENDED":
            (slurm.folder / "resumed").touch()
            stop.set()

    with pytest.raises(Stopped):
        step.run(Context(stop=stop, on_cluster_job=resume))
    assert slurm.calls("scancel")[0] == "--signal=TERM 48"


def test_a_controller_that_is_away_while_the_list_is_answered_is_not_waited_for_without_end(
    slurm: RecordedSlurm, step: SmallStep
):
    """A site's cache answers squeue."""
    step.patience_seconds = 0.5
    slurm.does("scontrol", NO_ANSWER)
    with pytest.raises(SlurmAway):
        step.run()
    assert slurm.calls("scancel") == []


def test_a_job_that_ended_badly_and_hangs_has_failed(slurm: RecordedSlurm, step: SmallStep, monkeypatch):
    monkeypatch.setattr("tasks.launch.slurm.watch.SECONDS_FOR_AN_EPILOG", 0.05)
    write_queue(slurm.folder / "line", [queued(step.command(), "48", "COMPLETING", "KEY")])
    listed = f'{leaves(step, 11)}\nsed "s/KEY/$key/" "$here/line"'
    slurm.does("squeue", f'[ -e "$here/key" ] || exit 0\n{listed}')
    assert step.run() == Ended(11)


@pytest.mark.parametrize(("reason", "shown"), [("None", ""), ("Priority", "Priority")])
def test_a_reason_that_slurm_has_not_found_yet_is_none(step: SmallStep, reason: str, shown: str):
    (seen,) = parse_queue(queued(step.command(), "48", "PENDING", "a", reason))
    assert cluster_job(step.command(), "48", ("a",), seen, "").reason == shown


def test_a_checkpoint_that_is_never_finished_is_nothing_that_was_kept(slurm: RecordedSlurm, step: SmallStep):
    """Each job is killed in the middle of one, and the next one deletes it: without end, until the step's time is spent."""
    aside = step.folder / "checkpoints" / '.step-00000040.$key.aside"'
    slurm.does("squeue", f'{leaves(step, 20)}\nmkdir -p "{aside}')
    slurm.does("sacct", f'echo "{step.command().name}|TIMEOUT"')
    with pytest.raises(TimedOut, match="before it had kept anything new"):
        step.run()
    assert len(slurm.calls("sbatch")) == 1
    assert list((step.folder / "checkpoints").iterdir())


def test_a_chain_goes_on_from_a_checkpoint(slurm: RecordedSlurm, step: SmallStep):
    """The first job leaves one, the second none."""
    first = f'[ -e "{step.folder}/checkpoints" ] || mkdir -p "{step.folder}/checkpoints/step-00000040"'
    slurm.does("squeue", f"{leaves(step, 20)}\n{first}")
    slurm.does("sacct", f'echo "{step.command().name}|TIMEOUT"')
    with pytest.raises(TimedOut, match="before it had kept anything new"):
        step.run()
    assert len(slurm.calls("sbatch")) == 2


@pytest.mark.parametrize(
    ("from_step", "is_more"), [("step-00000020", True), ("step-00000040", False), ("", True)]
)
def test_what_a_job_kept_before_it_was_attached_to_counts(step: SmallStep, from_step: str, is_more: bool):
    (step.folder / "checkpoints" / "step-00000040").mkdir(parents=True)
    make_start(step.record, "abc.0", started=f"1000 48 n1 {from_step}", exit="20 1100")
    command = step.command()
    job = Followed("abc", "48", step.record, JobLog(step.record / "abc.log", 0, has_labels=False))
    assert has_kept_more(command, kept(command), job) == is_more
    assert not has_kept_more(command, kept(command), None)
    assert has_kept_more(command, (), None)


def stop_when_it_runs(stop: threading.Event) -> Context:
    def hear(job: ClusterJob) -> None:
        if job.state == "RUNNING":
            stop.set()

    return Context(stop=stop, on_cluster_job=hear)


def test_a_slurm_that_is_away_while_ranks_stop_costs_no_checkpoint(slurm: RecordedSlurm, step: SmallStep):
    """A controller that is busy for some answers, while what was asked to stop writes one."""
    write_queue(slurm.folder / "line", [queued(step.command(), "48", "RUNNING", "KEY")])
    running = f'{leaves(step, None)}\nsed "s/KEY/$key/" "$here/line"'
    away = after(6, "away", leaves(step, 20), NO_ANSWER)
    slurm.does(
        "squeue",
        f'if [ -e "$here/scancel.calls" ]; then\necho >>"$here/away.calls"\n{away}\nexit 0\nfi\n{running}',
    )
    with pytest.raises(Stopped):
        step.run(stop_when_it_runs(threading.Event()))
    assert slurm.calls("scancel") == ["--signal=TERM 48"]
    assert len(slurm.calls("away")) > 6
    assert list(step.record.glob("*.0/over")) == []  # it would have been killed


def test_ranks_are_asked_to_stop_where_slurm_cannot_tell_them(
    slurm: RecordedSlurm, step: SmallStep, monkeypatch
):
    monkeypatch.setattr("tasks.launch.slurm.job_stop.SECONDS_FOR_AN_ANSWER", 0.2)
    write_queue(slurm.folder / "line", [queued(step.command(), "48", "RUNNING", "KEY")])
    running = f'{leaves(step, None)}\nsed "s/KEY/$key/" "$here/line"'
    ended = f'[ -s "$(ls -d {step.record}/*.0)/over" ] && {{ {leaves(step, 20)}\n}}'
    slurm.does("squeue", f'if [ -e "$here/scancel.calls" ]; then\n{ended}\n{NO_ANSWER}\nfi\n{running}')
    slurm.does("scancel", NO_ANSWER)
    began = time.monotonic()
    with pytest.raises(Stopped):
        step.run(stop_when_it_runs(threading.Event()))
    (over,) = step.record.glob("*.0/over")
    assert over.read_text() == "20\n"  # compute.stop_grace_seconds
    assert time.monotonic() - began < 20


def test_a_twin_that_waits_is_cancelled_at_the_end_only_if_it_waits_still(
    slurm: RecordedSlurm, step: SmallStep
):
    """It may be another machine's, and have begun since it was looked at."""
    write_queue(slurm.folder / "twin", [queued(step.command(), "49", "PENDING", "late", "Dependency")])
    slurm.does("squeue", f'{leaves(step, 0)}\ncat "$here/twin"')
    assert step.run() == Ended(0)
    assert slurm.calls("scancel") == ["--state=PENDING 49"]
