"""What became of a sweep's members, who wins, and all of it as a table. Pure."""

from collections.abc import Sequence

from dpo_core.contract.metric_names import OF_MEMBERS
from dpo_core.contract.section import Section
from tasks.gate.rules import GateCheck, failed_checks
from tasks.report.tables import Row, number

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
    return "; ".join(f"{member.label}: {_why_not(member, outcome.metric)}" for member in outcome.members)


def sweep_rows(outcome: SweepOutcome) -> list[Row]:
    """Return one row a member: its settings, metrics that can be compared, the gate's verdict, and what came of it."""
    names = [
        name
        for name in dict.fromkeys((outcome.metric, *OF_MEMBERS))
        if any(name in member.after for member in outcome.members)
    ]
    return [
        {
            "member": f"{member.number} ★" if member.number == outcome.winner else str(member.number),
            **member.settings,
            **{name: number(member.after.get(name)) for name in names},
            "outcome": "winner"
            if member.number == outcome.winner
            else _why_not(member, outcome.metric) or "trained",
            "run": member.run,
        }
        for member in outcome.members
    ]


def _why_not(member: MemberOutcome, metric: str) -> str:
    if member.error is not None:
        return f"{'interrupted' if member.interrupted else 'failed'}: {member.error.splitlines()[0]}"
    if failed := failed_checks(member.checks):
        return f"gate: {failed}"
    return "" if member.score(metric) is not None else f"no {metric} was measured"
