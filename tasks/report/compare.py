"""Runs side by side: what was set differently, and what came out differently. From files alone, also of several stores."""

import json
import math
from collections.abc import Callable, Sequence
from string import ascii_uppercase
from typing import Any

from dpo_core.contract.metric_names import (
    LAST_STEP,
    OF_THE_LOSS,
    SECOND_NAMES,
    direction_of,
    label_of,
    split_by_set,
)
from tasks.report.blocks import Block, Charts, Column, ColumnKind, Page, PageSection, Table, Text
from tasks.report.compared_answers import answers_of
from tasks.report.compared_judgements import judgements_section
from tasks.report.compared_scores import scores_section
from tasks.report.compared_software import software_of
from tasks.report.curves import STEPS_TO_SMOOTH, points_of, smoothed
from tasks.report.lineage import lineage
from tasks.report.svg import Chart, Labels, Line, line_chart
from tasks.report.tables import number
from tasks.report.timeline import duration
from tasks.run.files import RunFiles
from tasks.run.state import run_state
from tasks.run.step_metrics import TOKENS

COLOURS = ("blue", "orange", "green", "purple", "grey", "bad", "warn")
NOT_SETTINGS = ("name", "store.root")  # where a run lies and what it is called change nothing in it
OVERLAID = (
    ("Loss", "loss"),
    ("Reward accuracy", "rewards/accuracies"),
    ("Reward margin", "rewards/margins"),
    ("Gradient norm", "grad_norm"),
)
SAME = "="  # a cell that repeats the first run's value


def compare_page(runs: Sequence[RunFiles]) -> Page:
    """Return the page of two or more runs, called A, B, C ... in it."""
    sections = (
        settings_section(runs),
        fingerprints_section(runs),
        evaluation_section(runs),
        judgements_section(runs, labels(runs)),
        scores_section(runs, labels(runs)),
        final_section(runs),
        speed_section(runs),
        curves_section(runs),
        software_section(runs),
    )
    rows = tuple(
        (
            label,
            run.folder.name,
            run_state(run.record),
            f"{run.record.started:%Y-%m-%d %H:%M}",
            str(run.folder.parent.parent),
        )
        for label, run in zip(labels(runs), runs, strict=True)
    )
    listed = Table(
        (Column(""), Column("run"), Column("state"), Column("started (UTC)"), Column("store", "code")), rows
    )
    return Page(
        title="Compared: " + ", ".join(run.folder.name for run in runs),
        subtitle=f"{len(runs)} runs",
        badge=("comparison", ""),
        summary=(listed, *answers_of(runs, labels(runs))),
        sections=tuple(section for section in sections if section is not None),
        footer=f"{SAME} means: as in A. Made from the runs' files by `pairline compare`.",
    )


def labels(runs: Sequence[RunFiles]) -> list[str]:
    """Return A, B, C, ... and numbers from the 27th on."""
    return [
        ascii_uppercase[place] if place < len(ascii_uppercase) else str(place + 1)
        for place in range(len(runs))
    ]


def _table(
    runs: Sequence[RunFiles],
    first: str,
    rows: Sequence[tuple[str, Sequence[str]]],
    kind: ColumnKind = "number",
    caption: str = "",
) -> Table:
    """One column a run; what repeats A's value is only marked."""
    columns = (Column(first), *(Column(label, kind) for label in labels(runs)))
    return Table(
        columns,
        tuple(
            (
                name,
                cells[0] or "-",
                *(SAME if cell == cells[0] and cell else cell or "-" for cell in cells[1:]),
            )
            for name, cells in rows
        ),
        caption,
    )


def flat(values: Any, prefix: str = "") -> dict[str, str]:
    """Return a nested config as dotted names -> JSON of the value."""
    if isinstance(values, dict) and values:
        items = [(str(name), value) for name, value in values.items()]
    elif isinstance(values, list) and any(isinstance(item, dict) for item in values):
        items = [(str(place), value) for place, value in enumerate(values)]
    else:
        return {prefix: values if isinstance(values, str) else json.dumps(values)}
    return {
        name: value
        for key, inner in items
        for name, value in flat(inner, f"{prefix}.{key}" if prefix else key).items()
    }


def settings_section(runs: Sequence[RunFiles]) -> PageSection:
    """Return settings that are not the same in all runs."""
    configs = [flat(run.config) for run in runs]
    names = dict.fromkeys(name for config in configs for name in config if name not in NOT_SETTINGS)
    rows = [(name, [config.get(name, "(not set)") for config in configs]) for name in names]
    differ = [(name, cells) for name, cells in rows if len(set(cells)) > 1]
    block = _table(runs, "setting", differ, "words") if differ else Text("The settings are the same.")
    return PageSection("Settings that differ", "settings", (block,))


def fingerprints_section(runs: Sequence[RunFiles]) -> PageSection:
    """Return which of the artefacts have other content, and which are the same."""
    pins = [{_named(node.what, node.where): node.pin for node in lineage(run)} for run in runs]
    names = dict.fromkeys(name for run in pins for name in run)
    rows = [(name, [run.get(name, "").removeprefix("commit ")[:16] for run in pins]) for name in names]
    differ = [(name, cells) for name, cells in rows if len(set(cells)) > 1]
    same = [f"{name} {cells[0]}" for name, cells in rows if len(set(cells)) == 1]
    blocks: list[Block] = [_table(runs, "artefact", differ, "code")] if differ else []
    blocks.append(Text(f"The same in all: {'; '.join(same) or 'nothing'}."))
    return PageSection("Content that differs", "content", tuple(blocks))


def _named(what: str, where: str) -> str:
    return f"{what} {where.rstrip('/').rsplit('/', 1)[-1]}" if what == "preference set" else what


def evaluation_section(runs: Sequence[RunFiles]) -> PageSection | None:
    """Return held-out metrics, before and after."""
    results = [run.evaluation for run in runs]
    if not any(results):
        return None
    names = dict.fromkeys(
        name for result in results if result for name in result.after if name not in SECOND_NAMES
    )
    rows, best = [], []
    for name in names:
        cells = [
            f"{number(result.before.get(name)) or '-'} → {number(result.after.get(name)) or '-'}"
            if result and name in {**result.before, **result.after}
            else ""
            for result in results
        ]
        rows.append((label_of(name), cells))
        best.append(_best(name, [result.after.get(name) if result else None for result in results], runs))
    table = _table(runs, "held out, before → after", rows)
    table = Table(
        (*table.columns, Column("best")),
        tuple((*row, word) for row, word in zip(table.rows, best, strict=True)),
    )
    explanation = (
        "All are measured on the same held-out pairs. The best is so by its figure alone, which chance may have made: see "
        "each run's own standard errors."
        if _same_pairs(runs)
        else "They are measured on different held-out pairs: none is called the best."
    )
    explanation += (
        "" if _same_loss(runs) else " Losses, rewards and margins have other units where loss or beta differ."
    )
    return PageSection("Evaluation", "evaluation", (table, Text(explanation)))


def _best(name: str, values: Sequence[float | None], runs: Sequence[RunFiles]) -> str:
    """The label of the best run, where a metric has a direction and the runs differ."""
    better, of_a_set = direction_of(name), split_by_set(name)
    known = {
        label: value
        for label, value in zip(labels(runs), values, strict=True)
        if value is not None and math.isfinite(value)
    }
    of_other_units = (of_a_set[1] if of_a_set else name) in OF_THE_LOSS and not _same_loss(runs)
    same_pairs = _same_sets(runs) if of_a_set else _same_pairs(runs)
    if not better or not same_pairs or of_other_units or len(set(known.values())) < 2:
        return ""
    return max(known, key=lambda label: known[label] * better)


def _same_pairs(runs: Sequence[RunFiles]) -> bool:
    return len({run.mixture.data.fingerprint if run.mixture else "" for run in runs if run.evaluation}) == 1


def _same_sets(runs: Sequence[RunFiles]) -> bool:
    return len({run.sets.data.fingerprint if run.sets else "" for run in runs if run.evaluation}) == 1


def _same_loss(runs: Sequence[RunFiles]) -> bool:
    objectives = ([run.config.get("losses"), run.config.get("loss")] for run in runs)
    return len({json.dumps(objective, sort_keys=True) for objective in objectives}) == 1


def final_section(runs: Sequence[RunFiles]) -> PageSection | None:
    """Return the last training step."""
    if not any(run.metrics.count for run in runs):
        return None
    last = [run.metrics.last for run in runs]
    rows = [("step", [f"{step['step']:g}" if step else "" for step in last])]
    rows += [(label_of(name), [number(step.get(name)) for step in last]) for name in LAST_STEP]
    return PageSection("Last training step", "final", (_table(runs, "metric", rows),))


def speed_section(runs: Sequence[RunFiles]) -> PageSection:
    """Return wall time by step of the pipeline, and the rates of the heavy jobs."""
    names = dict.fromkeys(task.name for run in runs for task in run.record.tasks)
    rows = [("whole run", [duration(run.record.seconds) for run in runs])]
    rows += [
        (
            name,
            [
                duration(
                    next((task.seconds for task in reversed(run.record.tasks) if task.name == name), None)
                )
                for run in runs
            ],
        )
        for name in names
    ]
    measures: tuple[tuple[str, Callable[[RunFiles], float]], ...] = (
        ("training, pairs/s", lambda run: _per_second(run, "pairs")),
        ("training, tokens/s", lambda run: _per_second(run, TOKENS)),
        ("reference, pairs/s", lambda run: (run.reference and run.reference.pairs_per_second) or math.nan),
        ("training, peak GiB", lambda run: run.metrics.peak_gib),
    )
    rows += [(name, [_finite(measure(run)) for run in runs]) for name, measure in measures]
    return PageSection(
        "Time and speed",
        "speed",
        (_table(runs, "", rows, caption="Steps that were found done take no time."),),
    )


def _per_second(run: RunFiles, name: str) -> float:
    amount, seconds = run.metrics.total(name), run.metrics.total("step_seconds")
    return amount / seconds if amount and seconds else math.nan


def _finite(value: float) -> str:
    return number(value) if math.isfinite(value) else ""


def curves_section(runs: Sequence[RunFiles]) -> PageSection | None:
    """Return the training curves over each other."""
    charts = tuple(_overlaid(runs, title, name) for title, name in OVERLAID)
    return (
        PageSection("Curves", "curves", (Charts(charts),)) if any(run.metrics.count for run in runs) else None
    )


def _overlaid(runs: Sequence[RunFiles], title: str, name: str) -> Chart:
    is_long = any(run.metrics.count >= STEPS_TO_SMOOTH for run in runs)
    lines = []
    for place, (label, run) in enumerate(zip(labels(runs), runs, strict=True)):
        points = points_of(run.metrics.rows, name)
        lines += (
            [Line(label, COLOURS[place % len(COLOURS)], smoothed(points) if is_long else points)]
            if points
            else []
        )
    return line_chart(Labels(title, "optimizer step", "running mean" if is_long else ""), lines)


def software_section(runs: Sequence[RunFiles]) -> PageSection | None:
    """Return commit, machine and versions that differ."""
    known = [software_of(run) for run in runs]
    names = dict.fromkeys(name for run in known for name in run)
    rows = [(name, [run.get(name, "") for run in known]) for name in names]
    differ = [(name, cells) for name, cells in rows if len(set(cells)) > 1]
    return (
        PageSection("Software and machine that differ", "software", (_table(runs, "", differ, "words"),))
        if differ
        else None
    )
