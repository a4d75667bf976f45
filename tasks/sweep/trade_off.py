"""What a sweep's members score, against how far they moved from the reference for it. Pure.

A score that is bought with less divergence is worth more: the policy has kept more of what it could (Gao et al., arXiv
2210.10760; Rafailov et al., arXiv 2406.02900, set the same figures against each other for DPO).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dpo_core.contract.benchmarks import PREFIX
from tasks.gate.rules import failed_checks
from tasks.sweep.outcomes import MemberOutcome, SweepOutcome

KL = "kl/per_token"
FEWEST = 2  # members with both figures, for a picture


@dataclass(frozen=True, slots=True)
class Trade:
    """A member: ``kl`` nats a token bought ``score``. ``can_win``: it passes the gate. ``is_best``: it does, and no other
    that does scores as much for less, or more for as little."""

    member: MemberOutcome
    kl: float
    score: float
    can_win: bool
    is_best: bool


def trades_of(outcome: SweepOutcome, metric: str) -> tuple[Trade, ...]:
    """Return the members that have both figures, by rising divergence; none where fewer than two have."""
    measured = [
        (member, member.after[KL], member.after[metric])
        for member in outcome.members
        if member.error is None
        and all(math.isfinite(member.after.get(name, math.nan)) for name in (KL, metric))
    ]
    if len(measured) < FEWEST:
        return ()
    passing = {member.number for member, _, _ in measured if not failed_checks(member.checks)}
    able = [(kl, score) for member, kl, score in measured if member.number in passing]
    trades = []
    for member, kl, score in measured:
        can_win = member.number in passing
        trades.append(Trade(member, kl, score, can_win, can_win and _is_best(kl, score, able)))
    return tuple(sorted(trades, key=lambda trade: (trade.kl, trade.score)))


def _is_best(kl: float, score: float, others: Sequence[tuple[float, float]]) -> bool:
    return not any(
        other_kl <= kl and other_score >= score and (other_kl, other_score) != (kl, score)
        for other_kl, other_score in others
    )


def traded_metrics(outcome: SweepOutcome) -> tuple[str, ...]:
    """Return what divergence is set against: what the winner is chosen by, and each task that was scored."""
    tasks = [name for member in outcome.members for name in member.after if name.startswith(PREFIX)]
    return tuple(name for name in dict.fromkeys((outcome.metric, *tasks)) if trades_of(outcome, name))


def start_of(outcome: SweepOutcome, metric: str) -> float | None:
    """Return what the SFT checkpoint scored, which is the same for all."""
    return next((member.before[metric] for member in outcome.members if metric in member.before), None)
