"""What a sweep's report, artifact and terminal say of its members: a table, and what each scored for how far it moved."""

from dpo_core.contract.benchmarks import PREFIX
from dpo_core.contract.metric_names import MEANINGS, OF_MEMBERS
from tasks.report.blocks import Block, Charts, PageSection, Text, table_of
from tasks.report.scatter import Dot, Kind, scatter
from tasks.report.svg import Chart, Labels
from tasks.report.tables import Row, number
from tasks.run.files import RunFiles
from tasks.sweep.outcomes import MemberOutcome, SweepOutcome, why_not
from tasks.sweep.trade_off import Trade, start_of, traded_metrics, trades_of

MEASURE_IT = "With evaluation.measure_kl each score is set against the divergence from the reference here."
ABOUT = (
    "Large and joined: no other member that passes the gate scores as much for less divergence, or more for as little. "
    "Small: one does. A cross: the gate is not passed. Numbers are the members'."
)


def sweep_section(run: RunFiles) -> PageSection | None:
    """Return the members of a sweep; None of another run, or before the winner was chosen."""
    outcome = run.sweep
    if outcome is None:
        return None
    charts = trade_charts(outcome)
    about = f"Compared by {outcome.metric}. ★: the winner; ◆: a best trade."
    blocks: list[Block] = [table_of(sweep_rows(outcome), caption=about)]
    blocks += [Text(ABOUT), Charts(charts)] if charts else [Text(MEASURE_IT, "muted")]
    return PageSection("Members of the sweep", "members", tuple(blocks))


def trade_charts(outcome: SweepOutcome) -> tuple[Chart, ...]:
    """Return a chart a metric: score against divergence, a point a member."""
    return tuple(_trade_chart(outcome, metric) for metric in traded_metrics(outcome))


def _trade_chart(outcome: SweepOutcome, metric: str) -> Chart:
    label = MEANINGS[metric].label if metric in MEANINGS else metric
    dots = [
        Dot(_name(trade.member, outcome), trade.kl, trade.score, kind_of_trade(trade))
        for trade in trades_of(outcome, metric)
    ]
    start = start_of(outcome, metric)
    level = None if start is None else (start, "SFT checkpoint")
    return scatter(Labels(f"{label} for divergence", "KL from the reference, nats a token", ""), dots, level)


def _name(member: MemberOutcome, outcome: SweepOutcome) -> str:
    return f"{member.number} ★" if member.number == outcome.winner else str(member.number)


def kind_of_trade(trade: Trade) -> Kind:
    """Return how a member is drawn."""
    return "best" if trade.is_best else "dominated" if trade.can_win else "not passed"


def sweep_rows(outcome: SweepOutcome) -> list[Row]:
    """Return one row a member: its settings, metrics that can be compared, the gate's verdict, and what came of it.
    ★: the winner; ◆: nobody else has as much of the metric for less divergence, where that was measured."""
    measured = dict.fromkeys(name for member in outcome.members for name in member.after)
    scores = sorted(name for name in measured if name.startswith(PREFIX))
    names = [name for name in dict.fromkeys((outcome.metric, *OF_MEMBERS, *scores)) if name in measured]
    best = {trade.member.number for trade in trades_of(outcome, outcome.metric) if trade.is_best}
    return [
        {
            "member": _name(member, outcome) + (" ◆" if member.number in best else ""),
            **member.settings,
            **{name: number(member.after.get(name)) for name in names},
            "outcome": "winner"
            if member.number == outcome.winner
            else why_not(member, outcome.metric) or "trained",
            "run": member.run,
        }
        for member in outcome.members
    ]
