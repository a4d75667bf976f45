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
from tasks.text.scores import with_error

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
    if any(member.errors for member in outcome.members):
        about += " Behind ±: the standard error of a task's score."
    blocks: list[Block] = [table_of(sweep_rows(outcome), caption=about)]
    if lead := lead_in_words(outcome):
        blocks.append(Text(lead))
    blocks += [Text(ABOUT), Charts(charts)] if charts else [Text(MEASURE_IT, "muted")]
    return PageSection("Members of the sweep", "members", tuple(blocks))


def lead_in_words(outcome: SweepOutcome) -> str:
    """Return how far the winner is ahead of the second on each task; empty where no task was scored."""
    if not outcome.leads:
        return ""
    leads = "; ".join(f"{lead.metric} {with_error(lead.value, lead.stderr, '+')}" for lead in outcome.leads)
    return (
        f"The winner, {outcome.winner}, less the second, {outcome.second}: {leads}. Behind ±: the standard error of the "
        "documents' own differences. Whoever is chosen for a score owes some of its lead to chance."
    )


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


def _measured(member: MemberOutcome, name: str) -> str:
    value, error = member.after.get(name), member.errors.get(name)
    return number(value) if value is None or error is None else with_error(value, error)


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
            **{name: _measured(member, name) for name in names},
            "outcome": "winner"
            if member.number == outcome.winner
            else why_not(member, outcome.metric) or "trained",
            "run": member.run,
        }
        for member in outcome.members
    ]
