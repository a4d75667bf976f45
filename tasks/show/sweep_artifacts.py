"""A sweep as Prefect artifacts: one table, one picture."""

import base64
from pathlib import Path

from tasks.report.blocks import Charts, PageSection, Text
from tasks.report.markdown import render_section
from tasks.report.sweep_section import ABOUT, lead_in_words, sweep_rows, trade_charts
from tasks.show.artifacts import artifact_key, markdown_artifact, never_fails, table_artifact
from tasks.sweep.outcomes import SweepOutcome
from tasks.sweep.picture import draw_sweep
from tasks.text.escape import markdown_text


@never_fails
def show_sweep(outcome: SweepOutcome, folder: Path, family: str) -> None:
    """Show table ``<name>-sweep``, markdown ``<name>-sweep-picture``, which is also in ``folder``, and where divergence was
    measured ``<name>-sweep-trade-off``: each score against it."""
    winner = "no winner" if outcome.winner is None else outcome.members[outcome.winner - 1].label
    text = f"{len(outcome.members)} members by {outcome.metric}: {winner}"
    lead = lead_in_words(outcome)
    table_artifact(sweep_rows(outcome), artifact_key("sweep", family), f"{text}. {lead}" if lead else text)
    picture = base64.b64encode(
        draw_sweep(outcome, folder).read_bytes()
    ).decode()  # Prefect's page cannot reach the file
    markdown_artifact(
        f"![{markdown_text(text)}](data:image/png;base64,{picture})",
        artifact_key("sweep-picture", family),
        text,
    )
    if charts := trade_charts(outcome):
        section = PageSection("", "", (Text(ABOUT), Charts(charts)))
        markdown_artifact(
            render_section(section), artifact_key("sweep-trade-off", family), f"{text}; scores for divergence"
        )
