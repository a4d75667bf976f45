"""What became of a sweep's members, and who wins. Pure."""

from collections.abc import Sequence

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


class SweepOutcome(Section):
    """``sweep.json``."""

    metric: str
    winner: int | None  # number of the member
    members: tuple[MemberOutcome, ...]


def judge(members: Sequence[MemberOutcome], metric: str) -> SweepOutcome:
    """Return the member with the most of ``metric``, the first of equals; none if no one can, or if one was
    interrupted.
    """
    scored = [(score, -member.number) for member in members if (score := member.score(metric)) is not None]
    winner = -max(scored)[1] if scored and not any(member.interrupted for member in members) else None
    return SweepOutcome(
        metric=metric, winner=winner, members=tuple(sorted(members, key=lambda member: member.number))
    )


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
