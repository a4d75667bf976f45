"""The table of ends, line by line."""

from dataclasses import replace

import pytest

from dpo_core.contract.errors import Cancelled, ConfigError, PairlineError, StepCrashed, StoreError
from tasks.launch.launcher import Ended
from tasks.launch.slurm.ends import (
    JobEnd,
    LimitReached,
    failed_to_launch,
    how_it_ended,
    is_ended_with_a_lost_one,
    why_a_start_ended,
    why_it_never_starts,
)
from tasks.launch.slurm.record import RankEnd, Start


def ended(code: int | None, *ranks: RankEnd, **more: object) -> Start:
    return Start(0, "7", "n[1-2]", began=10.0, ended=20.0, exit_code=code, ranks=ranks, **more)


KILLED = (RankEnd(0, "n1", 22, 12.0), RankEnd(1, "n2", -9, 11.0))
ASKED = (RankEnd(0, "n1", -15, 11.0), RankEnd(1, "n2", -15, 11.1))
KILLED_AFTER = (RankEnd(0, "n1", 11, 11.0), RankEnd(1, "n2", -9, 12.0))
SILENT = (RankEnd(0, "n1", 0, 11.0), RankEnd(1, "n2"))
FENCED = (RankEnd(0, "n1", 75, 11.0),)
ENDS: list[tuple[str, JobEnd, type]] = [
    ("done", JobEnd("COMPLETED", start=ended(0)), Ended),
    ("done, and forgotten by Slurm", JobEnd("", start=ended(0)), Ended),
    ("done without a record that can be seen", JobEnd("COMPLETED", exit_code=0), Ended),
    ("the step's own error", JobEnd("FAILED", start=ended(11)), Ended),
    (
        "no store on the node",
        JobEnd("FAILED", start=ended(13, refused="The store is not to be seen on n1.")),
        StoreError,
    ),
    (
        "no interpreter",
        JobEnd("FAILED", start=ended(13, refused="There is no interpreter x on n1.")),
        ConfigError,
    ),
    ("a step out of memory", JobEnd("OUT_OF_MEMORY", start=ended(1)), Ended),
    (
        "srun saw the kernel kill",
        JobEnd("FAILED", start=ended(1), last_lines=["n1: task 1: Out Of Memory"]),
        Ended,
    ),
    ("a killed rank", JobEnd("FAILED", start=ended(137, *KILLED)), Ended),
    ("ended by a newer start", JobEnd("FAILED", start=ended(75, *FENCED)), Ended),
    ("lost, then ended by a newer start", JobEnd("COMPLETED", start=ended(0, *FENCED)), StepCrashed),
    ("time limit", JobEnd("TIMEOUT", start=ended(None)), LimitReached),
    ("deadline", JobEnd("DEADLINE", start=ended(None)), LimitReached),
    ("asked by --signal, checkpoint written", JobEnd("FAILED", start=ended(20)), LimitReached),
    ("asked by --signal, a step that keeps shards", JobEnd("FAILED", start=ended(143, *ASKED)), LimitReached),
    ("preempted, the site cancels", JobEnd("PREEMPTED", start=ended(20)), LimitReached),
    ("somebody's scancel", JobEnd("CANCELLED", start=ended(20)), Cancelled),
    ("somebody's scancel in the queue", JobEnd("CANCELLED"), Cancelled),
    ("a lost node", JobEnd("NODE_FAIL", start=ended(None)), StepCrashed),
    ("a node that did not boot", JobEnd("BOOT_FAIL"), StepCrashed),
    ("no folder for the log", JobEnd("FAILED", exit_code=0, slurm_signal=53), StoreError),
    ("no store, and no record", JobEnd("FAILED", exit_code=13), StoreError),
    (
        "no container",
        JobEnd("FAILED", start=ended(1), last_lines=["pyxis: failed to create container filesystem"]),
        ConfigError,
    ),
    (
        "docker has no such image",
        JobEnd(
            "FAILED",
            start=ended(125, RankEnd(0, "n1", 125, 11.0)),
            last_lines=["docker: Error response from daemon"],
        ),
        ConfigError,
    ),
    (
        "no docker on a node",
        JobEnd(
            "FAILED",
            start=ended(127, RankEnd(0, "n1", 127, 11.0)),
            last_lines=["docker: No such file or directory on n1"],
        ),
        ConfigError,
    ),
    (
        "done, and cancelled as it ended",
        JobEnd("CANCELLED", start=ended(0, RankEnd(0, "n1", 0, 11.0))),
        Ended,
    ),
    (
        "done, a child of a rank out of memory",
        JobEnd("OUT_OF_MEMORY", start=ended(0, RankEnd(0, "n1", 0, 11.0))),
        Ended,
    ),
    ("the batch script out of memory", JobEnd("FAILED", exit_code=0, slurm_signal=125), Ended),
    ("asked to stop, and forgotten", JobEnd("", start=ended(20)), LimitReached),
    ("srun ended well without a rank that it lost", JobEnd("", start=ended(0, *SILENT)), StepCrashed),
    ("forgotten, and silent", JobEnd("", start=ended(None)), StepCrashed),
]


@pytest.mark.parametrize(("what", "end", "expected"), ENDS, ids=[what for what, *_ in ENDS])
def test_an_end_means(what: str, end: JobEnd, expected: type):
    outcome = how_it_ended(end, "train")
    assert type(outcome) is expected
    if isinstance(outcome, PairlineError):
        assert outcome.problem.endswith(".")
        assert "train" in outcome.problem


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (JobEnd("CANCELLED", start=ended(20), by="anna"), "was cancelled by user anna."),
        (JobEnd("CANCELLED", start=ended(20)), "was cancelled by someone (`sacct -j 7` may say who)."),
        (JobEnd("CANCELLED"), "was cancelled by someone."),  # in the queue: it has no start that names it
    ],
)
def test_who_cancelled_a_job_is_told_where_somebody_knows(end: JobEnd, said: str):
    outcome = how_it_ended(end, "train")
    assert isinstance(outcome, Cancelled)
    assert outcome.problem == f"The Slurm job of step train {said}"


def test_the_rank_that_was_killed_first_is_the_cause():
    outcome = how_it_ended(JobEnd("FAILED", start=ended(137, *KILLED)), "train")
    assert outcome == Ended(-9, cause="rank 1 on n2 was killed by signal 9 (SIGKILL).")


def test_a_rank_that_failed_before_the_others_were_killed_speaks_for_itself():
    assert how_it_ended(JobEnd("FAILED", start=ended(11, *KILLED_AFTER)), "train") == Ended(11)


def test_a_rank_that_failed_by_itself_is_told_whatever_srun_ended_the_others_with():
    assert how_it_ended(JobEnd("FAILED", start=ended(137, *KILLED_AFTER)), "train") == Ended(11)


KEPT = (RankEnd(0, "n1", 20, 11.0), RankEnd(1, "n2", 20, 11.1))


@pytest.mark.parametrize(("code", "signal"), [(143, -15), (137, -9)])
def test_a_rank_that_stops_first_ends_the_others(code: int, signal: int):
    """srun ends with 143, or 137 after the site's KillWait: of a rank that had its checkpoint, too, and was about to end."""
    ranks = (RankEnd(0, "n1", 20, 11.0), RankEnd(1, "n2", signal, 11.3))
    assert how_it_ended(JobEnd("FAILED", start=ended(code, *ranks)), "train") == LimitReached()


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        # It says 0:9. Its ranks are asked to stop, and may have written a checkpoint.
        (JobEnd("FAILED", 0, 9, ended(None, *KEPT)), "its batch script on n[1-2] was killed by signal 9"),
        (JobEnd("FAILED", 0, 9, ended(None, *SILENT)), "its batch script on n[1-2] was killed by signal 9"),
        (JobEnd("FAILED", 0, 9), "its batch script was killed by signal 9"),
        (JobEnd("FAILED", start=ended(137, *KEPT)), "srun, or what it began on n[1-2], was killed by signal 9"),
        (JobEnd("FAILED", start=ended(137, *ASKED)), "srun, or what it began on n[1-2], was killed by signal 9"),
        (JobEnd("FAILED", start=ended(137, *SILENT)), "srun, or what it began on n[1-2], was killed by signal 9"),
        (JobEnd("FAILED", start=ended(137)), "srun, or what it began on n[1-2], was killed by signal 9"),
    ],
)  # fmt: skip
def test_what_starts_the_ranks_may_be_killed_as_well(end: JobEnd, cause: str):
    """No such end is a good one, nor the store's fault, nor a time limit."""
    assert how_it_ended(end, "train") == Ended(-9, cause=f"{cause} (SIGKILL).")


def test_an_end_of_which_nobody_knows_a_code_is_no_good_one():
    assert isinstance(how_it_ended(JobEnd("FAILED", 0, 0, ended(None, *KEPT)), "train"), StepCrashed)


def test_memory_is_told_whoever_saw_it():
    for end in (
        JobEnd("OUT_OF_MEMORY", start=ended(1)),
        JobEnd("FAILED", start=ended(137, *KILLED), last_lines=["oom-kill event"]),
    ):
        outcome = how_it_ended(end, "train")
        assert isinstance(outcome, Ended)
        assert outcome.out_of_memory
        assert "slurm.memory_gib" in outcome.advice


def test_what_is_done_is_done_whatever_slurm_says_of_the_job():
    """24.11 with cgroups: a child of a rank was killed for memory, so srun ends with 1, and the job has FAILED."""
    good = RankEnd(0, "n1", 0, 11.0)
    told = "srun: error: n1: task 0: Out Of Memory"
    alone, of_two = RankEnd(0, "n1", 0, 11.0, world=1), RankEnd(0, "n1", 0, 11.0, world=2)
    assert how_it_ended(JobEnd("FAILED", start=ended(1, alone), last_lines=[told]), "train") == Ended(0)
    assert how_it_ended(JobEnd("FAILED", start=ended(1, of_two), last_lines=[told]), "train") != Ended(0)
    for state in ("OUT_OF_MEMORY", "CANCELLED", "TIMEOUT", "PREEMPTED", "FAILED", "NODE_FAIL"):
        assert how_it_ended(JobEnd(state, start=ended(0, good)), "train") == Ended(0)
        assert how_it_ended(JobEnd(state, start=ended(0, good, RankEnd(1, "n2"))), "train") != Ended(0)
        assert how_it_ended(JobEnd(state, start=ended(0)), "train") != Ended(0)


def test_a_stop_of_which_slurm_knows_nothing_is_no_time_limit_if_nothing_was_kept():
    """A controller that lost all it knew ends what it does not know."""
    for start in (ended(20), ended(143, *ASKED)):
        assert how_it_ended(JobEnd("FAILED", start=start), "train") == LimitReached()
        outcome = how_it_ended(JobEnd("", start=start), "train")
        assert isinstance(outcome, LimitReached)
        assert "does not know it any more" in outcome.otherwise


MEMORY = [  # as slurmstepd and srun print it: 20.11, 22.05, 24.11 (src/slurmd/slurmstepd/mgr.c, src/api/step_launch.c)
    "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0 cgroup. Some of your processes may have been killed by "
    "the cgroup out-of-memory handler.",
    "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.",
    "srun: error: n1: task 1: Out Of Memory",
    "slurmstepd: error: StepId=7.batch exceeded memory limit (734003200 > 52428800), being killed",  # OverMemoryKill
]


@pytest.mark.parametrize("line", MEMORY)
def test_memory_is_told_by_the_line_of_each_version(line: str):
    outcome = how_it_ended(JobEnd("FAILED", start=ended(137, *KILLED), last_lines=[line]), "train")
    assert isinstance(outcome, Ended)
    assert outcome.out_of_memory
    assert outcome.cause == "rank 1 on n2 was killed by signal 9 (SIGKILL)."


@pytest.mark.parametrize(
    "reason",
    [
        *(
            "PartitionTimeLimit",
            "PartitionConfig",
            "PartitionNodeLimit",
            "BadConstraints",
            "InvalidAccount",
            "InvalidQOS",
        ),
        *(
            "QOSNotAllowed",
            "AccountNotAllowed",
            "MaxMemPerLimit",
            "ReservationInvalid",
            "DependencyNeverSatisfied",
        ),
        # One job asks for more than a limit lets any have: src/common/job_state_reason.c of 24.11.
        *(
            "QOSMaxWallDurationPerJobLimit",
            "AssocMaxWallDurationPerJobLimit",
            "QOSMaxNodePerJobLimit",
            "QOSMaxGRESPerJob",
        ),
        *("QOSMaxCpuMinutesPerJobLimit", "AssocMaxGRESPerNode", "QOSMinGRES", "QOSMinCpuNotSatisfied"),
        "Job's_QOS_not_permitted_to_use_this_partition_(gpu_allows_normal_not_debug)",
    ],
)
def test_what_can_never_start_is_refused(reason: str):
    assert why_it_never_starts(reason) == reason


@pytest.mark.parametrize(
    "reason",
    [
        "Resources",
        "Priority",
        "ReqNodeNotAvail, UnavailableNodes:n1",
        "QOSMaxJobsPerUserLimit",
        "AssocGrpGRES",
        # Of all jobs of a user, an account or a group together: some of them end.
        *(
            "AssocGrpNodeLimit",
            "QOSGrpNodeLimit",
            "AssocMaxJobsLimit",
            "QOSMaxNodePerUserLimit",
            "QOSMaxGRESPerUser",
        ),
        *(
            "MaxGRESPerAccount",
            "QOSMaxJobsPerUserLimit",
            "AssocGrpCPUMinutesLimit",
            "JobArrayTaskLimit",
            "Reservation",
        ),
        "Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved_for_jobs_in_higher_priority_partitions",
        "ReqNodeNotAvail,_May_be_reserved_for_other_job",
        "JobHeldUser",
        "JobHeldAdmin",
        "BeginTime",
        "Dependency",
        "None",
        "PartitionDown",
        "NodeDown",
        "Licenses",
        "launch failed requeued held",
        "user env retrieval failed requeued held",
    ],
)
def test_what_may_start_yet_waits(reason: str):
    assert why_it_never_starts(reason) == ""


def test_a_failed_launch_is_neither():
    assert failed_to_launch("launch failed requeued held")
    assert failed_to_launch("user env retrieval failed requeued held")
    assert not failed_to_launch("JobHeldUser")


@pytest.mark.parametrize(
    ("start", "is_followed", "expected"),
    [
        (Start(0, exit_code=0, ranks=(RankEnd(0, "n1", 0),)), False, "done"),
        (Start(0, ranks=(RankEnd(0, "n1"),)), False, ""),
        (Start(0, nodes="n[1-2]"), True, "lost: nothing more was heard of n[1-2]"),
        (Start(0, exit_code=0, ranks=(RankEnd(0, "n1", 0), RankEnd(1, "n2"))), True, "lost: nothing more was heard of n2"),
        (Start(0, exit_code=20, ranks=(RankEnd(0, "n1", 20),)), True, "stopped after SIGTERM: preempted and requeued"),
        (Start(0, exit_code=75, ranks=(RankEnd(0, "n1", 75),)), True, "ended by a newer start"),
        (Start(0, exit_code=0, ranks=(RankEnd(0, "n1", 75),)), True, "ended by a newer start"),
        (Start(0, ranks=(RankEnd(0, "n1", 75),)), True, "ended by a newer start"),
        (Start(0, exit_code=137, ranks=(RankEnd(0, "n1", -9),)), False, "rank 0 on n1 was killed by signal 9 (SIGKILL)"),
        (Start(0, exit_code=11, ranks=(RankEnd(0, "n1", 11),)), False, "exit code 11"),
        (Start(0, exit_code=13, refused="There is no interpreter x."), False, "There is no interpreter x."),
    ],
)  # fmt: skip
def test_a_start_says_in_a_few_words_why_it_ended(start: Start, is_followed: bool, expected: str):
    assert why_a_start_ended(start, is_followed) == expected


@pytest.mark.parametrize(
    "gone", [RankEnd(1, "n2"), RankEnd(1, "n2", 75)], ids=["silent", "ended by the next start"]
)
@pytest.mark.parametrize("asked", [20, -15])
def test_a_start_that_lost_a_node_says_so_though_the_others_were_asked_to_stop(gone: RankEnd, asked: int):
    start = Start(0, exit_code=20, ranks=(RankEnd(0, "n1", asked), gone))
    assert why_a_start_ended(start, is_followed=True) == "lost: nothing more was heard of n2"
    assert why_a_start_ended(start, is_followed=False).startswith("stopped after SIGTERM: time limit")


LOST = ended(None, *SILENT)


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        ([LOST, ended(143)], True),  # no rank had begun
        ([LOST, ended(None, RankEnd(0, "n1"), RankEnd(1, "n2"))], True),  # the batch script itself
        ([ended(20, RankEnd(0, "n1", 20, 11.0), RankEnd(1, "n2")), ended(143)], True),  # the others stopped
        ([ended(0, *SILENT), ended(137, RankEnd(0, "n1", 20, 12.0), RankEnd(1, "n2"))], True),
        ([LOST, replace(ended(137), ended=80.0)], False),  # it was at work
        ([LOST, ended(137, *KILLED)], False),  # with an error of its own
        ([ended(20, *ASKED), ended(137)], False),  # nothing was left of the start before
        ([ended(137)], False),
    ],
)
def test_a_start_that_is_killed_as_it_begins_was_ended_with_a_lost_one(starts: list[Start], expected: bool):
    assert is_ended_with_a_lost_one(Ended(-15), starts) is expected
    for other in (Ended(22), Ended(-9, out_of_memory=True), LimitReached(), StepCrashed("")):
        assert not is_ended_with_a_lost_one(other, starts)
