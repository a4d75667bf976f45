"""The report's section of what a judge found."""

from tasks.report.blocks import Column, PageSection, Table, Text
from tasks.run.files import RunFiles
from tasks.text.judgement import how_it_judged, judgement_rows


def judgement_section(run: RunFiles) -> PageSection | None:
    """Return how often the trained model's answers win, at what agreement and cost."""
    if run.judgement is None:
        return None
    rows = judgement_rows(run.judgement, *prices_of(run))
    table = Table(
        (Column("figure"), Column("value", "number")), tuple((row["figure"], row["value"]) for row in rows)
    )
    return PageSection("Judge", "judge", (Text(how_it_judged(run.judgement)), table))


def prices_of(run: RunFiles) -> tuple[float, float]:
    """Return what the run's recipe says that a million tokens cost, in and out; nought where it says nothing."""
    section = run.config.get("judge")
    section = section if isinstance(section, dict) else {}
    found = [section.get(name) for name in ("price_in", "price_out")]
    price_in, price_out = (float(one) if isinstance(one, int | float) else 0.0 for one in found)
    return price_in, price_out
