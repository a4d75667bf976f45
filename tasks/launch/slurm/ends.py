"""What an end means: what Slurm says of a job and what its ranks wrote down in, ``Ended`` or an error out. Pure.

seen                                                     means
exit 0, of every rank                                    the step ended well, whatever Slurm says of the job (cancelled as
                                                         it ended) and srun (a child of a rank was out of memory)
it could not begin: store, interpreter, a set-up line    store or config, not retried
a step OUT_OF_MEMORY, "oom-kill event"                   oom
a rank, its first program, srun or the batch script      crashed: the first rank by time, its node, the signal
killed by a signal
TIMEOUT, DEADLINE; exit 20; a rank ended by SIGTERM      the job's time is up: a chain goes on
the same, unknown to Slurm                               the same, if it has kept something new; else crashed
PREEMPTED and not requeued                               the same, if it has kept something new; else preempted
CANCELLED, not by us                                     cancelled: a person said so, and accounting may tell who
NODE_FAIL, BOOT_FAIL and not requeued                    crashed, the node is the cause
FAILED 0:53, a container that cannot be made             config
unknown to Slurm, no sign of life                        crashed
killed soon after it began, by what ended a lost start   another job goes on, once
any other exit code                                      as the step reported it
"""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from dpo_core.contract.errors import Cancelled, ConfigError, PairlineError, Preempted, StepCrashed, StoreError
from dpo_core.contract.rank_container import NO_CONTAINER as NO_CONTAINER_CODES
from tasks.launch.launcher import Ended
from tasks.launch.slurm.record import RankEnd, Start

OUT_OF_MEMORY = re.compile(
    r"\bOut Of Memory\b|oom[-_]kill event|\boom_kill\b|OOM Killed|exceeded memory limit \("
)
NO_CONTAINER = re.compile(
    r"(pyxis: (?:failed to|couldn't) .*container.*|FATAL: +(?:could not open|container creation failed).*)",
    re.IGNORECASE,
)
NOT_BEGUN = re.compile(r"(docker: (?!See ).*|(?:docker|apptainer): .* on \S+|Unable to find image .*)")
MORE_MEMORY = (
    "Raise slurm.memory_gib, what a job asks for on each node: empty, it is the site's default, often little."
)
LAUNCH_FAILED = 53  # Slurm's own code: a node could not start the job
SLURM_OUT_OF_MEMORY = 125  # in the place of a signal: the batch script itself
FENCED = 75  # dpo_core.in_slurm's
PREEMPTED_EXIT = Preempted.exit_code
SECONDS_OF_A_LOST_NODES_END = (
    60.0  # seconds, and what a site gives ranks between SIGTERM and SIGKILL (KillWait)
)
SIGNAL_EXIT, LARGEST_SIGNAL = 128, 64
NEVER = re.compile(
    r"Partition(TimeLimit|Config|NodeLimit)|BadConstraints|DependencyNeverSatisfied|MaxMemPerLimit"
    r"|\w*Invalid\w*|(QOS|Account)NotAllowed|(Assoc|QOS)Max\w+Per(Job|Node)(Limit)?|QOSMin\w+"
)  # of Slurm's src/common/job_state_reason.c; what is of all jobs of a user, an account or a group goes away; a hold is
# somebody's, who may release it, and a job that is given up has lost its place
NOT_PERMITTED = re.compile(
    r"not[ _]permitted[ _]to[ _]use[ _]this[ _]partition"
)  # in place of QOSNotAllowed, with both names
LAUNCH_HELD = re.compile(r"requeued[ _]held|JobHoldMaxRequeue", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class JobEnd:
    """What is known of a job that has ended. ``state``: Slurm's word, empty if it does not know the job any more. ``by``:
    who cancelled it, empty if nobody says."""

    state: str
    exit_code: int | None = None  # of the batch script
    slurm_signal: int = 0
    start: Start | None = None  # the last one
    last_lines: Sequence[str] = ()
    by: str = ""


@dataclass(frozen=True, slots=True)
class LimitReached:
    """The job came to its time limit; whether a chain goes on depends on what it has kept.

    ``otherwise``, ``error``: what it is if nothing was kept, where Slurm does not say that it was the limit. A job that it
    has forgotten was asked to stop by whomever: a controller that lost all it knew ends what it does not know.
    """

    otherwise: str = ""
    error: type[PairlineError] = StepCrashed


def how_it_ended(end: JobEnd, step: str) -> Ended | LimitReached | PairlineError:
    """Return what the end means (see the table above)."""
    start = end.start or Start(0)
    code = start.exit_code if start.exit_code is not None else end.exit_code
    if code == 0 and any(rank.code in (None, FENCED) for rank in start.ranks):
        code = None  # srun's, which had lost sight of a rank
    if start.refused:
        return (StoreError if start.refused.startswith("The store") else ConfigError)(
            f"Step {step}: {start.refused}"
        )
    if start.is_good or (code == 0 and end.state in ("", "COMPLETED", "COMPLETING", "RUNNING")):
        return Ended(0)
    if any(OUT_OF_MEMORY.search(line) for line in end.last_lines) or (
        end.state == "OUT_OF_MEMORY" or end.slurm_signal == SLURM_OUT_OF_MEMORY
    ):
        first = _first_killed(start.ranks)
        cause = _of_signal(first) if first else _of_memory(start)
        return Ended(code or 1, out_of_memory=True, cause=cause, advice=MORE_MEMORY)
    if end.state == "CANCELLED":
        someone = f"someone (`sacct -j {start.job_id}` may say who)" if start.job_id else "someone"
        by = f"user {end.by}" if end.by else someone
        return Cancelled(
            f"The Slurm job of step {step} was cancelled by {by}.",
            "Start again to go on from its last checkpoint.",
        )
    if end.state in ("TIMEOUT", "DEADLINE"):
        return LimitReached()
    if end.state == "PREEMPTED":
        said = f"The Slurm job of step {step} made room for one of higher priority, and its site does not requeue."
        return LimitReached(said, Preempted)
    if end.state in ("NODE_FAIL", "BOOT_FAIL"):
        return StepCrashed(
            f"Step {step} lost a node ({start.nodes or 'none of its own'}), and Slurm did not start it again."
        )
    if code == PREEMPTED_EXIT:
        return LimitReached(_of_whom(end, start, step))
    if said := _no_container(start, end.last_lines):
        return ConfigError(
            f"The container of step {step} cannot be made: {said}.",
            "Look at slurm.container and slurm.image, and at the container's program on the nodes.",
        )
    killed = end.slurm_signal if start.exit_code is None else 0  # the batch script itself
    if end.slurm_signal == LAUNCH_FAILED or (not start.began and end.state == "FAILED" and not killed):
        return StoreError(
            f"No node could begin step {step}: the store, where its log goes, is not to be seen there, or is not writable.",
            "Give store.root a path that all nodes see.",
        )
    if killed:
        return Ended(-killed, cause=f"its batch script{_on(start)} was killed by {_named(killed)}.")
    return _by_ranks(code, start, step, _of_whom(end, start, step))


def _of_whom(end: JobEnd, start: Start, step: str) -> str:
    """Who asked a job to stop, if it may have been another than its time limit."""
    said = f"The Slurm job of step {step} was asked to stop{_on(start)}, and Slurm does not know it any more."
    return "" if end.state else said


def _by_ranks(
    code: int | None, start: Start, step: str, otherwise: str
) -> Ended | LimitReached | PairlineError:
    """What the ranks say of an end of which Slurm knows no more than that it was none of the good ones. ``otherwise``: as
    ``LimitReached`` has it."""
    first, ended = _first_killed(start.ranks), _first_ended(start.ranks)
    was_asked = ended is not None and ended.code in (-signal.SIGTERM, PREEMPTED_EXIT)
    # The first that has stopped ends the others, which may be about to stop themselves: srun tells how that went.
    of_others = {None, -signal.SIGTERM, *(rank.code for rank in start.ranks)}
    if was_asked and (code is None or _signal(code) in of_others):
        return LimitReached(otherwise)
    if (
        first is not None and not was_asked
    ):  # srun tells the largest code, which may be of a rank that it ended itself
        return Ended(first.code or 1, cause=_of_signal(first))
    if not code:  # Slurm's 0 is of no good end here
        return StepCrashed(
            f"The Slurm job of step {step} is gone{_on(start)}, and its ranks did not say how they ended."
        )
    if (exit_code := _signal(code)) > 0:
        return Ended(exit_code)
    if (by_itself := _first_by_itself(start.ranks)) is not None:
        return Ended(by_itself)
    return Ended(exit_code, cause=f"srun, or what it began{_on(start)}, was killed by {_named(-exit_code)}.")


def _no_container(start: Start, last_lines: Sequence[str]) -> str:
    """What was said of a container that could not be made; empty where there was one, or none was asked for."""
    said = next(filter(None, map(NO_CONTAINER.search, last_lines)), None)
    if said is None and any(rank.code in NO_CONTAINER_CODES for rank in start.ranks):
        said = next(filter(None, map(NOT_BEGUN.search, last_lines)), None)
        return said[1].rstrip(".") if said else "its program could not be started"
    return said[1] if said else ""


def _signal(code: int | None) -> int:
    """As ``Ended`` tells a signal; srun gives 128 and the signal."""
    if code is not None and SIGNAL_EXIT < code <= SIGNAL_EXIT + LARGEST_SIGNAL:
        return SIGNAL_EXIT - code
    return 1 if code is None else code


def _first_ended(ranks: Sequence[RankEnd]) -> RankEnd | None:
    ended = (rank for rank in ranks if rank.code not in (None, 0, FENCED))
    return min(ended, key=lambda rank: rank.time, default=None)


def _first_killed(ranks: Sequence[RankEnd]) -> RankEnd | None:
    """The rank that was killed before any other ended. One that ended with an error before that speaks for itself."""
    first = _first_ended(ranks)
    return first if first is not None and (first.code or 0) < 0 else None


def _first_by_itself(ranks: Sequence[RankEnd]) -> int | None:
    """The code of the rank that ended before any other with an error; that of one that was asked to stop says nothing."""
    first = _first_ended(ranks)
    return (
        first.code if first is not None and (first.code or 0) > 0 and first.code != PREEMPTED_EXIT else None
    )


def _of_signal(rank: RankEnd) -> str:
    return f"rank {rank.rank} on {rank.host} was killed by {_named(-(rank.code or 0))}."


def _named(number: int) -> str:
    return f"signal {number}" + (f" ({signal.Signals(number).name})" if number in set(signal.Signals) else "")


def _on(start: Start) -> str:
    return f" on {start.nodes}" if start.nodes else ""


def _of_memory(start: Start) -> str:
    return f"Slurm ended it on {start.nodes} for the memory that it took." if start.nodes else ""


def is_ended_with_a_lost_one(outcome: Ended | LimitReached | PairlineError, starts: Sequence[Start]) -> bool:
    """Return whether Slurm seems to have killed the last start, soon after it began, with what a lost node still ran of
    the one before. It tells a node that comes back to end that, and the node kills by the job's id, once a second, for as
    long as anything of it lives: a job that waits for that very node begins before that is over.
    """
    is_killed = isinstance(outcome, Ended) and outcome.exit_code < 0 and not outcome.out_of_memory
    if not is_killed or len(starts) < 2:
        return False
    before, last = starts[-2:]
    is_lost = any(rank.code is None for rank in before.ranks)
    of_others = all(rank.code in (None, PREEMPTED_EXIT) or rank.code < 0 for rank in last.ranks)
    return is_lost and of_others and last.seconds(last.last_sign) < SECONDS_OF_A_LOST_NODES_END


def why_a_start_ended(start: Start, is_followed: bool, is_over: bool = False) -> str:
    """Return it in a few words for a list of starts; empty for one that runs. ``is_followed``: by one of the same job."""
    code = start.exit_code
    lost = [rank for rank in start.ranks if rank.code is None]
    if start.refused:
        return start.refused
    if code is None and not is_followed and not is_over:
        return ""
    if code in (None, 0) and (lost or not start.ranks) and (is_followed or is_over):
        return _lost(lost, start)
    fenced = any(rank.code == FENCED for rank in start.ranks)
    if start.is_good or (code == 0 and not fenced):
        return "done"
    first = _first_killed(start.ranks)
    if code == PREEMPTED_EXIT or (first is not None and first.code == -signal.SIGTERM):
        # Slurm asks the ranks of a job that loses a node, too, but for those there: they say nothing, or the next start
        # ends them. One that is preempted is asked as a whole.
        unasked = [rank for rank in start.ranks if rank.code in (None, FENCED)]
        if is_followed and unasked:
            return _lost(unasked, start)
        return f"stopped after SIGTERM: {'preempted and requeued' if is_followed else 'time limit, or asked to stop'}"
    if code == FENCED:
        return "ended by a newer start"
    if first is not None:
        return _of_signal(first).rstrip(".")
    if fenced:
        return "ended by a newer start"
    return f"exit code {code}" if code is not None else "ended by Slurm"


def _lost(ranks: Sequence[RankEnd], start: Start) -> str:
    hosts = ", ".join(sorted({rank.host for rank in ranks})) or start.nodes or "its node"
    return f"lost: nothing more was heard of {hosts}"


def why_it_never_starts(reason: str) -> str:
    """Return what is wrong with a pending job that can never start; empty for one that waits."""
    never = NEVER.fullmatch(reason.partition(",")[0]) or NOT_PERMITTED.search(reason)
    return reason if never and not LAUNCH_HELD.search(reason) else ""


def failed_to_launch(reason: str) -> bool:
    """Return whether a node could not launch the job, and Slurm holds it for somebody to look."""
    return bool(LAUNCH_HELD.search(reason))
