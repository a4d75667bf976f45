"""What Slurm's programs print, read; recorded of 22.05.8."""

import pytest

from dpo_core.contract.errors import ConfigError
from tasks.launch.slurm.client import (
    AWAY,
    UNKNOWN_HERE,
    NotAuthenticated,
    QueuedJob,
    SlurmAway,
    accounted,
    parse_details,
    parse_queue,
    queue,
    refusal,
    submit,
    who_cancelled,
)
from tests.tasks.launch.slurm.recorded import RecordedSlurm

LINE = (
    "7\x1fPENDING\x1fReqNodeNotAvail, UnavailableNodes:n1\x1f\x1fgpu\x1f2026-01-01T10:00:00\x1fpairline-x\x1f"
    '{"key": "a", "folder": "/s/it\'s"}\x1f2026-01-01T09:00:00'
)


def test_a_line_of_squeue_is_a_job_with_its_comment():
    (seen,) = parse_queue(LINE + "\n")
    assert seen == QueuedJob(
        "7",
        "PENDING",
        "ReqNodeNotAvail, UnavailableNodes:n1",
        "",
        "gpu",
        "2026-01-01T10:00:00",
        "pairline-x",
        {"key": "a", "folder": "/s/it's"},
        "2026-01-01T09:00:00",
    )
    assert seen.is_active


@pytest.mark.parametrize("comment", ["(null)", "", "[1]", '"a"', "{half", "GOLD:x"])
def test_the_comment_of_somebody_else_is_none_of_ours(comment: str):
    (seen,) = parse_queue(LINE.replace('{"key": "a", "folder": "/s/it\'s"}', comment))
    assert seen.comment == {}


def test_lines_of_another_form_are_nobodys():
    assert parse_queue("slurm_load_jobs error: x\n\n7\x1fRUNNING\n") == []


@pytest.mark.parametrize("length", [1, 20, len(LINE)])
def test_half_a_line_says_nothing_of_what_is_in_the_queue(monkeypatch, tmp_path, length: int):
    """Whoever looked for a job before a submission would submit a second one."""
    slurm = RecordedSlurm(tmp_path / "bin", monkeypatch)
    (slurm.folder / "queue").write_text(f"{LINE}\n{LINE[:length]}")
    with pytest.raises(SlurmAway, match="in the middle of a line"):
        queue(["pairline-x"])
    (slurm.folder / "queue").write_text(f"{LINE}\n")
    assert len(queue(["pairline-x"])) == 1


@pytest.mark.parametrize(
    ("state", "is_active"),
    [("RUNNING", True), ("COMPLETING", True), ("REQUEUED", True), ("SUSPENDED", True), ("EXPEDITING", True)]
    + [(state, False) for state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")],
)
def test_a_job_is_active_until_nothing_can_bring_it_back(state: str, is_active: bool):
    assert parse_queue(LINE.replace("PENDING", state))[0].is_active == is_active


def test_details_are_names_and_values():
    text = "JobId=7 JobName=pairline-x Requeue=1 Restarts=0 ExitCode=0:53 Command=(null) StdOut=/a/b"
    told = parse_details(text)
    assert (told["JobName"], told["ExitCode"], told["StdOut"]) == ("pairline-x", "0:53", "/a/b")


@pytest.mark.parametrize(
    "said",
    [
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "squeue: error: Unable to contact slurm controller (connect failure)",
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Batch job submission failed: Resource temporarily unavailable",
        "slurm_load_jobs error: Slurm backup controller in standby mode",
    ],
)
def test_no_answer_is_told_from_a_refusal(said: str):
    assert AWAY.search(said)
    assert not UNKNOWN_HERE.search(said)


@pytest.mark.parametrize(
    "said",
    [
        "sbatch: error: Batch job submission failed: Protocol authentication error",
        'squeue: error: Munge encode failed: Failed to access "/run/munge/munge.socket.2"',
        "slurm_load_jobs error: Zero Bytes were transmitted or received",  # slurmctld does not know the key
    ],
)
def test_who_is_not_known_is_told_from_no_answer(monkeypatch, tmp_path, said: str):
    slurm = RecordedSlurm(tmp_path / "bin", monkeypatch)
    slurm.does("squeue", f"echo '{said}' >&2; exit 1")
    with pytest.raises(
        NotAuthenticated, match=r"cannot be told who asks .* is munged running on this machine"
    ):
        queue()


@pytest.mark.parametrize(
    "said",
    [
        "sbatch: error: invalid partition specified: nosuch",
        "sbatch: error: Batch job submission failed: Invalid partition name specified",
        "sbatch: error: Batch job submission failed: Requested node configuration is not available",
    ],
)
def test_a_refusal_is_slurms_sentence(said: str):
    assert not AWAY.search(said)
    assert not UNKNOWN_HERE.search(said)
    assert refusal(said) == said.removeprefix("sbatch: error: ") + "."


@pytest.mark.parametrize(
    ("said", "is_shared"),
    [
        ("QOSMaxSubmitJobPerUserLimit", False),
        ("AssocMaxSubmitJobLimit", False),
        ("AssocGrpSubmitJobsLimit", True),
        ("QOSGrpSubmitJobsLimit", True),
        ("MaxSubmitJobsPerAccount", True),
        ("QOSMaxWallDurationPerJobLimit", None),
        ("AssocMaxJobsLimit", None),
    ],
)  # of src/common/job_state_reason.c of 24.11; sbatch says it before the sentence that all limits have
def test_a_limit_on_submitted_jobs_is_told_from_one_on_what_a_job_asks_for(
    monkeypatch, tmp_path, said: str, is_shared: bool | None
):
    policy = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
    slurm = RecordedSlurm(tmp_path / "bin", monkeypatch)
    slurm.does(
        "sbatch", f'printf "sbatch: error: %s\\n" {said} "Batch job submission failed: {policy}" >&2; exit 1'
    )
    with pytest.raises(ConfigError, match=said) as refused:
        submit((), "")
    assert getattr(refused.value, "is_shared", None) is is_shared


@pytest.mark.parametrize(
    ("printed", "state"),
    [
        ("pairline-x|COMPLETED\n", "COMPLETED"),
        ("pairline-x|CANCELLED by 1000\n", "CANCELLED"),
        ("pairline-x|OUT_OF_MEMORY\n", "OUT_OF_MEMORY"),
        ("other|COMPLETED\npairline-x|TIMEOUT\n", "TIMEOUT"),  # the id was given twice
        ("pairline-x|RUNNING\n", ""),  # slurmdbd was not told of the end
        ("other|COMPLETED\n", ""),
        ("", ""),
        ("INVALID", ""),
    ],
)
def test_accounting_is_asked_by_id_and_believed_by_name(monkeypatch, tmp_path, printed: str, state: str):
    """As ``sacct --parsable2`` prints it, 22.05 and 24.11."""
    slurm = RecordedSlurm(tmp_path / "bin", monkeypatch)
    (tmp_path / "bin/said").write_text(printed)
    slurm.does("sacct", 'cat "$here/said"')
    assert accounted("7", "pairline-x") == state
    slurm.does("sacct", 'echo "Slurm accounting storage is disabled" >&2; exit 1')
    assert accounted("7", "pairline-x") == ""


@pytest.mark.parametrize(
    ("printed", "who"),
    [
        ("pairline-x|CANCELLED by 0\n", "root"),
        ("pairline-x|CANCELLED by 4000000001\n", "of number 4000000001"),  # of another machine's
        ("pairline-x|CANCELLED\n", ""),
        ("pairline-x|CANCELLED by ²\n", ""),
        ("pairline-x|COMPLETED\n", ""),
        ("pairline-x|CANCELLED by 0\nother|CANCELLED by 7\n", "root"),
        ("other|CANCELLED by 0\n", ""),
        ("", ""),
    ],
)
def test_accounting_tells_who_cancelled_a_job(monkeypatch, tmp_path, printed: str, who: str):
    slurm = RecordedSlurm(tmp_path / "bin", monkeypatch)
    (tmp_path / "bin/said").write_text(printed)
    slurm.does("sacct", 'cat "$here/said"')
    assert who_cancelled("7", "pairline-x") == who
    slurm.does("sacct", 'echo "Slurm accounting storage is disabled" >&2; exit 1')
    assert who_cancelled("7", "pairline-x") == ""


def test_an_array_that_is_too_large_says_which_setting(monkeypatch, tmp_path):
    slurm = RecordedSlurm(tmp_path / "bin", monkeypatch)
    said = "sbatch: error: Batch job submission failed: Invalid job array specification"
    slurm.does("sbatch", f'echo "{said}" >&2; exit 1')
    with pytest.raises(ConfigError, match=r"Lower slurm\.reference_array: MaxArraySize"):
        submit((), "")


def test_a_machine_without_slurm_is_told_in_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="There is no sbatch on this machine"):
        submit((), "")


def test_a_program_that_cannot_be_started_says_nothing_of_a_job(monkeypatch, tmp_path):
    """As where there is no memory, or the file system is away: no job that runs is to be ended for it."""
    (tmp_path / "squeue").touch(mode=0o644)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmAway, match="Permission denied"):
        queue()


@pytest.mark.parametrize("said", ["48", "48;cluster", "Quota: 3 of 10 hours\n48", "48\n\n"])
def test_the_id_is_the_last_line_that_sbatch_prints(monkeypatch, tmp_path, said: str):
    slurm = RecordedSlurm(tmp_path / "bin", monkeypatch)
    slurm.does("sbatch", f"printf '%s\\n' '{said}'")
    assert submit((), "") == "48"


@pytest.mark.parametrize("said", ["", "Submitted", "48 jobs"])
def test_a_submission_without_an_id_may_have_been_taken(monkeypatch, tmp_path, said: str):
    slurm = RecordedSlurm(tmp_path / "bin", monkeypatch)
    slurm.does("sbatch", f"echo '{said}'")
    with pytest.raises(SlurmAway, match="no id"):
        submit((), "")


def test_a_submission_takes_no_secret_along_and_nothing_of_an_allocation_around_it(monkeypatch, tmp_path):
    """All that sbatch sees, the job gets and Slurm keeps."""
    stand_in = tmp_path / "sbatch"
    stand_in.write_text(f"#!/bin/sh\nenv >{tmp_path}/env\necho 48\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name in ("HF_TOKEN", "SLURM_MEM_PER_NODE", "SLURM_JOB_ID", "SBATCH_EXPORT", "SLURM_CONF"):
        monkeypatch.setenv(name, "given")
    assert submit((), "") == "48"
    told = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert {"PATH", "SLURM_CONF"} <= told
    assert not told & {"HF_TOKEN", "SLURM_MEM_PER_NODE", "SLURM_JOB_ID", "SBATCH_EXPORT"}
