"""A sweep as Prefect artifacts: one table, one picture."""

import base64
from pathlib import Path

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from tasks.artifacts import artifact_key, never_fails
from tasks.sweep.outcomes import SweepOutcome, sweep_rows
from tasks.sweep.picture import draw_sweep


@never_fails
def show_sweep(outcome: SweepOutcome, folder: Path) -> None:
    """Table ``<name>-sweep``, markdown ``<name>-sweep-picture``; the picture is also in ``folder``."""
    winner = "no winner" if outcome.winner is None else outcome.members[outcome.winner - 1].label
    told = f"{len(outcome.members)} members by {outcome.metric}: {winner}"
    create_table_artifact(sweep_rows(outcome), key=artifact_key("sweep"), description=told)
    picture = base64.b64encode(draw_sweep(outcome, folder).read_bytes()).decode()  # Prefect's page cannot reach the file
    create_markdown_artifact(f"![{told}](data:image/png;base64,{picture})", key=artifact_key("sweep-picture"),
                             description=told)
