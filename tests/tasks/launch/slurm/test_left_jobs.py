"""What earlier starts have left: ended, read to the end, each line once, whenever the one who reads is killed."""

import os

import pytest

from tasks.launch.context import Context
from tasks.launch.launcher import Ended
from tasks.launch.log_position import save_position
from tasks.launch.own_folder import claim, make_own_folder
from tasks.launch.slurm import left_jobs, share_logs
from tasks.launch.slurm.client import parse_queue
from tasks.launch.slurm.left_jobs import copy_rest_of_log, end
from tasks.launch.slurm.reap import reap_jobs
from tasks.launch.slurm.share_logs import read_ended_shares
from tasks.launch.step_log import LogFile
from tests.slurm_cluster.small_step import SmallStep
from tests.tasks.launch.slurm.recorded import RecordedSlurm, after, queued, start_lines

COUNT = 2


@pytest.fixture
def step(tmp_path) -> SmallStep:
    step = SmallStep(tmp_path, "", step="reference")
    step.command()
    make_own_folder(step.folder)
    step.record.mkdir()
    for share in range(COUNT):
        (step.record / f"share-{share}-of-{COUNT}").mkdir()
    return step


def test_a_job_that_the_list_lacks_is_waited_for(slurm: RecordedSlurm, step: SmallStep):
    shown = f'echo "JobId=48 JobName={step.command().name} JobState=RUNNING"'
    slurm.does("scontrol", after(2, "scontrol", "exit 1", shown))
    end(parse_queue(queued(step.command(), "48", "PENDING", "abc")))
    assert len(slurm.calls("scontrol")) == 3


def test_all_that_is_left_in_a_folder_is_reaped_before_it_is_put_away(slurm: RecordedSlurm, step: SmallStep):
    """Of two arrays what the second one prints as it ends was lost, and its secrets gone while it ran."""
    lines = [
        queued(step.command(), f"{48 + n}_{n}", "RUNNING", key, count=COUNT) for n, key in enumerate("ab")
    ]
    slurm.has_queued(*lines)
    record = step.record
    prints = [
        f'echo "{key} ended" >>"{record}/share-{n}-of-{COUNT}/{key}-{n}.log"' for n, key in enumerate("ab")
    ]
    gone = ': >"$here/queue"'
    slurm.does("scancel", f'case "$*" in 48) {prints[0]};; 49) {prints[1]}; {gone};; *TERM*49) {gone};; esac')
    save_position(step.folder, {f"share-{n}-of-{COUNT}/{key}-{n}": "0" for n, key in enumerate("ab")})
    found = reap_jobs(dry_run=False, state_of=lambda flow_run: "over")
    assert found is not None
    assert [one.done for one in found] == ["cancelled", "cancelled"]
    assert [one.name.split()[0] for one in found] == ["48", "49"]
    assert step.log_lines == ["[share 0] a ended", "[share 1] b ended"]


def test_a_secret_that_no_job_reads_any_more_is_reaped(slurm: RecordedSlurm, step: SmallStep):
    """Its run was killed, and the job has ended since. It is found by another job of the same store."""
    other = SmallStep(step.root, "", step="train")
    make_own_folder(other.folder)
    other.record.mkdir()
    secrets = [one.record / "secret-WANDB_API_KEY" for one in (step, other)]
    for secret in secrets:
        secret.write_text("key")
        os.utime(secret, (0, 0))
    slurm.has_queued(
        queued(step.command(), "48", "COMPLETED", "abc"), queued(other.command(), "49", "RUNNING", "b")
    )

    def reaped(dry_run: bool) -> list[tuple[str, str]]:
        found = reap_jobs(dry_run, state_of=lambda flow_run: "live") or []
        return [(one.folder, one.done) for one in found if one.reason]

    assert reaped(dry_run=True) == [(str(step.folder), "would be removed")]
    with claim(step.folder):
        assert reaped(dry_run=False) == []
    assert all(secret.exists() for secret in secrets)
    assert reaped(dry_run=False) == [(str(step.folder), "removed")]
    assert [secret.exists() for secret in secrets] == [False, True]
    (step.record / "secret-NEW").write_text("key")  # of a job that the list may lack yet
    assert reaped(dry_run=False) == []


class Killed(BaseException):
    pass


def test_a_kill_while_logs_are_read_repeats_no_line(step: SmallStep):
    """Nothing of them was in a saved position."""
    keys = [f"share-{share}-of-{COUNT}/abc-{share}" for share in range(COUNT)]
    for key in keys:
        (step.record / f"{key}.log").write_text("x\ny\n")
    log = LogFile(step.folder)

    def killed(line: str) -> None:
        log.write(line)
        if line == "[share 1] x":
            raise Killed

    with pytest.raises(Killed):
        read_ended_shares(step.folder, keys, killed)
    read_ended_shares(step.folder, keys, log.write)
    read_ended_shares(step.folder, keys, log.write)
    assert step.log_lines == ["[share 0] x", "[share 0] y", "[share 1] x", "[share 1] y"]


def test_a_kill_once_logs_are_marked_as_read_loses_no_line(step: SmallStep, monkeypatch):
    key = f"share-0-of-{COUNT}/abc-0"
    (step.record / f"{key}.log").write_text("x\ny\n")
    save_position(step.folder, {"another": "0"})

    def killed(*told: object) -> None:
        (step.record / f"{key}.read").write_text("4\n")
        raise Killed

    for module in (left_jobs, share_logs):
        monkeypatch.setattr(module, "mark_read", killed, raising=False)
    with pytest.raises(Killed):
        copy_rest_of_log(step.folder, [key])
    monkeypatch.undo()
    copy_rest_of_log(step.folder, [key])
    assert step.log_lines == ["[share 0] x", "[share 0] y"]


def test_a_job_that_its_run_could_not_cancel_gets_its_secrets_again(slurm: RecordedSlurm, step: SmallStep):
    """Slurm was away as it waited, so the next run attaches to it. It may begin at any moment."""
    slurm.has_queued(queued(step.command(), "48", "PENDING", "abc", "Priority"))
    sees = f'cat {step.record}/secret-WANDB_API_KEY >>"$here/seen" 2>/dev/null'
    ended = start_lines(step.record, "", "abc", 0)
    slurm.does("squeue", f"{sees}\n" + after(3, "squeue", ended, 'cat "$here/queue"'))
    context = Context(secrets={"WANDB_API_KEY": "key"})
    assert step.run(context, secrets=("WANDB_API_KEY",)) == Ended(0)
    assert "key" in (slurm.folder / "seen").read_text()
    assert (slurm.calls("sbatch"), list(step.record.glob("secret-*"))) == ([], [])
