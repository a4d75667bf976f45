"""Where the time of a run went, and how fast it was."""

import math

from tasks.report.blocks import Block, Charts, Column, PageSection, Table, Text
from tasks.report.timeline import duration, spans_of, time_chart
from tasks.run.files import RunFiles
from tasks.run.step_metrics import TOKENS


def time_section(run: RunFiles) -> PageSection:
    """Return wall time of each step, speed of each job, what was reused."""
    spans, chart = spans_of(run.record), time_chart(run.record)
    reused = sum(span.is_reused for span in spans)
    seconds = run.record.seconds
    words = "The run has not ended" if seconds is None else f"{duration(seconds)} from start to end"
    words += f"; {reused} of {len(spans)} tasks were found done in the store (grey)." if reused else "."
    blocks: list[Block] = [Text(words), *((Charts((chart,)),) if chart else ())]
    rows = _speed_rows(run)
    if rows:
        columns = (
            Column("job"),
            Column("took", "number"),
            Column("speed", "number"),
            Column("notes", "words"),
        )
        blocks.append(
            Table(
                columns,
                rows,
                "The time a job took when it ran, which for a reused one was in an earlier run.",
            )
        )
    return PageSection("Time and speed", "time", tuple(blocks))


def _speed_rows(run: RunFiles) -> tuple[tuple[str, ...], ...]:
    rows = []
    if mixture := run.mixture:
        count = sum(ledger.rows_in for ledger in mixture.per_source)
        rows.append(
            ("mix", mixture.seconds, count / mixture.seconds if mixture.seconds else None, "rows/s", "")
        )
    if reference := run.reference:
        cached = reference.rows - reference.rows_computed
        words = f"{reference.rows_computed:,} rows computed" + (
            f", {cached:,} were in the cache" if cached else ""
        )
        rows.append(
            (
                "reference",
                reference.seconds,
                reference.pairs_per_second,
                "pairs/s",
                f"{words}; {reference.forward}",
            )
        )
    if trained := run.trained:
        pairs, seconds = run.metrics.total("pairs"), run.metrics.total("step_seconds")
        peak = 0.0 if math.isnan(run.metrics.peak_gib) else run.metrics.peak_gib
        tokens = run.metrics.total(TOKENS)
        rows.append(
            (
                "train",
                trained.seconds,
                pairs / seconds if seconds else None,
                "pairs/s",
                f"{tokens / seconds:,.0f} tokens/s; peak memory {peak:.1f} GiB; {trained.forward}"
                if seconds
                else "",
            )
        )
    for name, result in (("export", run.exported), ("evaluate", run.evaluation)):
        if result:
            rows.append((name, result.seconds, None, "", ""))
    return tuple(
        (name, duration(took), f"{rate:,.2f} {unit}" if rate else "", notes)
        for name, took, rate, unit, notes in rows
    )
