"""The report's section of benchmarks, before and after."""

from collections.abc import Sequence

from dpo_core.contract.benchmarks import BenchmarkScore
from tasks.report.blocks import Block, Column, Details, PageSection, Table, Text, Tone
from tasks.run.files import RunFiles
from tasks.text.scores import TITLES, cells_of, how_they_were_put

LEVEL = 0.05  # of chance, below which a change is coloured


def benchmarks_section(run: RunFiles) -> PageSection | None:
    """Return each task's scores with their standard errors, and the change with its paired one."""
    if run.benchmarks is None:
        return None
    asked = [score for score in run.benchmarks.scores if score.part_of is None]
    inner = [score for score in run.benchmarks.scores if score.part_of is not None]
    blocks: list[Block] = [Text(how_they_were_put(run.benchmarks)), _table(asked)]
    within = (
        (Details(f"{len({score.task for score in inner})} tasks of groups", (_table(inner),)),)
        if inner
        else ()
    )
    return PageSection("Benchmarks", "benchmarks", (*blocks, *within))


def _table(scores: Sequence[BenchmarkScore]) -> Table:
    text = ("task", "metric")
    columns = tuple(Column(title, "text" if title in text else "number") for title in TITLES)
    return Table(columns, tuple(map(cells_of, scores)), "", tuple(map(_tone, scores)), TITLES.index("change"))


def _tone(score: BenchmarkScore) -> Tone:
    """Green or red where chance is an unlikely cause."""
    outcome = score.outcome
    if outcome is None or outcome.chance >= LEVEL or not score.change:
        return ""
    return "good" if score.change > 0 else "bad"
