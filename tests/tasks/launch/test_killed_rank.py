"""Which rank was killed, from what torchrun and accelerate print (as of torch 2.13 and accelerate 1.15)."""

import pytest

from tasks.launch.killed_rank import KilledRank

SECOND = "2026-03-01_17:40:{:02d}"


def failure(rank: int, code: int, second: int = 0) -> str:
    how = (
        f"Signal {-code} received by PID 4711" if code < 0 else "To enable traceback see: https://pytorch.org"
    )
    return (
        f"[{rank}]:\n  time      : {SECOND.format(second)}\n  host      : n1\n"
        f"  rank      : {rank} (local_rank: {rank})\n  exitcode  : {code} (pid: 4711)\n"
        f"  error_file: <N/A>\n  traceback : {how}"
    )


def report(root: str, *others: str) -> str:
    listed = "\n".join(others) or "  <NO_OTHER_FAILURES>"
    return (
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n====\ndpo_core FAILED\n----\n"
        f"Failures:\n{listed}\n----\nRoot Cause (first observed failure):\n{root}\n===="
    )


def cause_of(text: str) -> str:
    seen = KilledRank()
    for line in text.splitlines():
        seen.take(line)
    return seen.cause()


@pytest.mark.parametrize(
    ("root", "others", "cause"),
    [
        ((1, -9), [], "rank 1 was killed by signal 9 (SIGKILL)."),
        ((1, -9), [(0, -15, 1)], "rank 1 was killed by signal 9 (SIGKILL)."),
        # Both seen at once, of which torchrun calls the first the root.
        ((0, 22), [(1, -9, 0)], "rank 1 was killed by signal 9 (SIGKILL)."),
        ((0, 1), [(2, -11, 1), (1, -15, 1)], "rank 2 was killed by signal 11 (SIGSEGV)."),
        # It failed by itself; the others were ended by torchrun, or ended themselves as they found it gone.
        ((0, 11), [(1, -15, 0)], ""),
        ((0, 11), [(1, -6, 0)], ""),
        ((0, 11), [(1, -9, 30)], ""),
        ((1, -6), [(0, 22, 0)], "rank 1 was killed by signal 6 (SIGABRT)."),
        ((3, -40), [], "rank 3 was killed by signal 40."),
    ],
)
def test_the_rank_that_was_killed_is_the_cause(root: tuple, others: list[tuple], cause: str):
    assert cause_of(report(failure(*root), *(failure(*one) for one in others))) == cause


def test_the_one_process_that_accelerate_starts_itself():
    says = "subprocess.CalledProcessError: Command '['python', '-m', 'dpo_core', 'mix']' {}"
    assert cause_of(says.format("died with <Signals.SIGKILL: 9>.")) == (
        "its process was killed by signal 9 (SIGKILL)."
    )
    assert cause_of(says.format("returned non-zero exit status 11.")) == ""
    assert cause_of(says.format("died with <Signals.SIGKILL: 9>.").replace("dpo_core", "git")) == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  rank      : x\n  exitcode  : -9 (pid: 1)",
        "  time      : now\n  rank      : 1\n  exitcode  : -9",
        "Root Cause",
    ],
)
def test_what_a_step_says_itself_is_no_report(text: str):
    assert cause_of(text) == ""
