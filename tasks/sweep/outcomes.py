"""What became of a sweep's members, and who wins. Pure."""

from collections.abc import Mapping, Sequence

from dpo_core.contract.benchmarks import PREFIX, TaskScores, compared
from dpo_core.contract.section import Section
from tasks.gate.rules import GateCheck, failed_checks

SWEEP_FILE = "sweep.json"  # in the sweep's own folder


class MemberOutcome(Section):
    """One member: trained, measured and checked, or failed."""

    number: int
    label: str
    settings: dict[str, str | int | float]
    run: str  # name of its run's folder; empty if it got none
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    errors: dict[str, float] = {}  # standard errors of what stands in ``after``, of tasks alone
    checks: tuple[GateCheck, ...] = ()
    error: str | None = None
    interrupted: bool = False  # the error is not of its settings' making: started again, it may win

    def score(self, metric: str) -> float | None:
        """Return what it is compared by; None if it cannot win: it failed, breaks a rule of the gate, or has no such
        number.
        """
        value = self.after.get(metric)
        out = self.error is not None or value is None or value != value or failed_checks(self.checks)
        return None if out else value


class Lead(Section):
    """How much more of a task's metric the winner has than the second. ``stderr``: that of the documents' own differences;
    None where what each document gave is not known."""

    metric: str
    value: float
    stderr: float | None


class SweepOutcome(Section):
    """``sweep.json``."""

    metric: str
    winner: int | None  # number of the member
    second: int | None = None  # has most of the metric but for the winner
    leads: tuple[Lead, ...] = ()
    members: tuple[MemberOutcome, ...]


def judge(members: Sequence[MemberOutcome], metric: str) -> SweepOutcome:
    """Return the member with the most of ``metric``, the first of equals, and the next; none if no one can win, or if one
    was interrupted.
    """
    scored = [(score, -member.number) for member in members if (score := member.score(metric)) is not None]
    is_over = not any(member.interrupted for member in members)
    first, second, *_ = *(-place for _, place in sorted(scored, reverse=True) if is_over), None, None
    ordered = tuple(sorted(members, key=lambda member: member.number))
    return SweepOutcome(metric=metric, winner=first, second=second, members=ordered)


def with_leads(outcome: SweepOutcome, scores: Mapping[int, Sequence[TaskScores]]) -> SweepOutcome:
    """Return it with the winner's scores beside those of the second. ``scores``: of members by number."""
    if outcome.winner is None or outcome.second is None:
        return outcome
    found = compared(scores.get(outcome.second, ()), scores.get(outcome.winner, ()))
    leads = tuple(
        Lead(metric=PREFIX + score.task, value=score.change, stderr=score.paired_stderr)
        for score in found
        if score.is_main and score.part_of is None and score.better > 0
    )
    return outcome.model_copy(update={"leads": leads})


def why_nobody_won(outcome: SweepOutcome) -> str:
    """Return each member's reason, as a phrase."""
    return "; ".join(f"{member.label}: {why_not(member, outcome.metric)}" for member in outcome.members)


def why_not(member: MemberOutcome, metric: str) -> str:
    """Return why a member cannot win; empty if it can."""
    if member.error is not None:
        return f"{'interrupted' if member.interrupted else 'failed'}: {member.error.splitlines()[0]}"
    if failed := failed_checks(member.checks):
        return f"gate: {failed}"
    return "" if member.score(metric) is not None else f"no {metric} was measured"
