"""Benchmarks of several runs side by side, and how far their checkpoints are apart by the same documents."""

from collections.abc import Sequence

from dpo_core.contract.benchmarks import BenchmarkScore, compared
from tasks.report.blocks import Block, Column, Heading, PageSection, Table, Text
from tasks.run.files import RunFiles
from tasks.text.scores import cells_of, with_error


def scores_section(runs: Sequence[RunFiles], labels: Sequence[str]) -> PageSection | None:
    """Return each task's scores by run, and each later run's change from the first one's; None without benchmarks."""
    if not any(run.benchmarks for run in runs):
        return None
    found = [_scores_of(run) for run in runs]
    names = dict.fromkeys(name for scores in found for name in scores)
    rows = []
    for task, metric in names:
        scores = [one.get((task, metric)) for one in found]
        rows.append((task, metric, *(_cell(score) for score in scores)))
    columns = (Column("task"), Column("metric"), *(Column(label, "number") for label in labels))
    blocks: list[Block] = [
        Text("SFT checkpoint → trained one, with the standard error of the latter."),
        Table(columns, tuple(rows)),
    ]
    for label, run in list(zip(labels, runs, strict=True))[1:]:
        changes = _changes(runs[0], run)
        if changes:
            titles = (
                Column("task"),
                Column("metric"),
                Column(f"{label} - {labels[0]}", "number"),
                Column("p", "number"),
            )
            blocks += [Heading(f"Trained checkpoints: {label} beside {labels[0]}"), Table(titles, changes)]
    return PageSection("Benchmarks", "benchmarks", tuple(blocks))


def _scores_of(run: RunFiles) -> dict[tuple[str, str], BenchmarkScore]:
    scores = run.benchmarks.scores if run.benchmarks else ()
    return {(score.task, cells_of(score)[1]): score for score in scores if score.part_of is None}


def _cell(score: BenchmarkScore | None) -> str:
    return "-" if score is None else f"{score.before:.4f} → {with_error(score.after, score.after_stderr)}"


def _changes(first: RunFiles, other: RunFiles) -> tuple[tuple[str, ...], ...]:
    """From one trained checkpoint to the other, where both were asked the same way."""
    if first.trained_scores is None or other.trained_scores is None or not _asked_alike(first, other):
        return ()
    cells = [
        cells_of(score)
        for score in compared(first.trained_scores.scores, other.trained_scores.scores)
        if score.part_of is None
    ]
    return tuple((row[0], row[1], row[5], row[6]) for row in cells)


def _asked_alike(first: RunFiles, other: RunFiles) -> bool:
    ways = [run.benchmarks.model_dump(exclude={"scores"}) for run in (first, other) if run.benchmarks]
    return len(ways) == 2 and ways[0] == ways[1]
