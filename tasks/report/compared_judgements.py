"""What judges found of several runs, side by side."""

from collections.abc import Sequence

from tasks.report.blocks import Column, PageSection, Table, Text
from tasks.report.judgement import prices_of
from tasks.run.files import RunFiles
from tasks.text.judgement import judgement_rows


def judgements_section(runs: Sequence[RunFiles], labels: Sequence[str]) -> PageSection | None:
    """Return each run's figures in a column; None where nobody judged."""
    found = [_figures_of(run) for run in runs]
    if not any(found):
        return None
    names = dict.fromkeys(name for figures in found for name in figures)
    rows = tuple((name, *(figures.get(name, "-") for figures in found)) for name in names)
    columns = (Column("figure"), *(Column(label, "number") for label in labels))
    said = (
        "Each trained model's answers against those of the SFT model that it came from; 0.5 is no difference."
    )
    return PageSection("Judge", "judge", (Text(said), Table(columns, rows)))


def _figures_of(run: RunFiles) -> dict[str, str]:
    if run.judgement is None:
        return {}
    rows = judgement_rows(run.judgement, *prices_of(run))
    return {"judge": run.judgement.model} | {row["figure"]: row["value"] for row in rows}
