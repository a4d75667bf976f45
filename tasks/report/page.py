"""The run on one page: ``report.html`` in its folder, and the same as an artifact. Made from the run's files alone."""

from datetime import UTC, datetime
from pathlib import Path

from dpo_core.contract.metric_names import MEANINGS, TILES, tone_of
from dpo_core.contract.store import write_bytes
from tasks.report.benchmarks import benchmarks_section
from tasks.report.blocks import Block, Code, Column, Notice, Page, Table, Text, Tile, Tiles, Tone
from tasks.report.html import render_html
from tasks.report.judgement import judgement_section
from tasks.report.reproduce import commands, reproduce_section
from tasks.report.sections import (
    data_section,
    evaluation_section,
    lineage_section,
    rlvr_section,
    samples_section,
    training_section,
)
from tasks.report.sweep_section import sweep_section
from tasks.report.tables import counted, number
from tasks.report.time_section import time_section
from tasks.report.timeline import duration
from tasks.report.verdict import verdict_blocks, verdict_of_run
from tasks.run.files import RunFiles, failed_log, read_run_files
from tasks.run.followed import FollowedFiles
from tasks.run.state import is_over, run_state

REPORT_FILE = "report.html"
SECONDS_BETWEEN_LOOKS = 10  # of a page that is open, while its run goes on
BADGES: dict[str, tuple[str, Tone]] = {
    "completed": ("completed", "good"),
    "failed": ("failed", "bad"),
    "cancelled": ("cancelled", "warn"),
    "running": ("running", "warn"),
    "killed": ("killed", "bad"),
    "suspended": ("waits for approval", "warn"),
    "not released": ("not released", "bad"),
}
NOTHING_HELD_IT = (
    "It was published and handed off although it is worse, as nothing was to hold it back: no rule of the gate is set, "
    "no sign is to stop the run (evaluation.warnings.stop), nobody was asked (gate.approval)."
)
RESUME = "Start the same run again: steps that are done are reused, and training goes on from its newest checkpoint."


def write_report(folder: Path, followed: FollowedFiles | None = None) -> Page:
    """Write ``report.html`` into a run's folder, from its files. ``followed``: of who writes it again and again. -> the
    page. Raises ``StoreError``, ``DiskFull``."""
    page = report_page(read_run_files(folder, followed), followed)
    write_bytes(folder / REPORT_FILE, render_html(page).encode())
    return page


def report_page(run: RunFiles, followed: FollowedFiles | None = None) -> Page:
    """Return the page of a run in any state. ``followed``: what remembers how far files were read for the page before it."""
    sections = (
        sweep_section(run),
        evaluation_section(run),
        judgement_section(run),
        benchmarks_section(run),
        samples_section(run),
        training_section(run),
        data_section(run),
        time_section(run),
        lineage_section(run),
        rlvr_section(run),
        reproduce_section(run),
    )
    started = f"{run.record.started:%Y-%m-%d %H:%M} UTC"
    flow_run = f", flow run {run.record.flow_run_id}" if run.record.flow_run_id else ""
    goes_on = not is_over(run.record)
    as_of = f"; as it stood at {datetime.now(UTC):%H:%M:%S} UTC" if goes_on else ""
    return Page(
        title=run.folder.name,
        subtitle=f"Pairline DPO stage, started {started}{flow_run}{as_of}",
        badge=BADGES[run_state(run.record)],
        summary=(*what_failed(run), *verdict_blocks(run, followed), *summary(run)),
        sections=tuple(section for section in sections if section is not None),
        footer=f"Made from the files of {run.folder}. `pairline report` makes it again"
        + (
            ", with --follow again and again while the run goes on; this page looks for it by itself."
            if goes_on
            else "."
        ),
        refresh_seconds=SECONDS_BETWEEN_LOOKS if goes_on else None,
    )


def summary(run: RunFiles) -> tuple[Block, ...]:
    """Return what it was, what came out, where it is."""
    blocks: list[Block] = [Text(what_it_is(run))]
    if tiles := headline_tiles(run):
        blocks.append(Tiles(tiles))
    blocks += release_blocks(run)
    if run.handoff:
        blocks.append(
            Text(
                f"Published as {run.handoff.checkpoint.uri}, revision {run.handoff.checkpoint.revision[:16]}; "
                f"hand-off for RLVR: {run.handoff_path}"
            )
        )
        if not (run.gate or run.approval) and (verdict := verdict_of_run(run)) and verdict.answer == "Worse":
            blocks.append(Text(NOTHING_HELD_IT, "warn"))
    return tuple(blocks)


def what_it_is(run: RunFiles) -> str:
    """Say in one sentence: objective, model, data, length."""
    model = run.config.get("checkpoint", {}).get("source", "?")
    adapter = run.config.get("adapter", {}).get("kind", "none")
    what = f"{_objective(run)} on {model}"
    what += f" with {adapter}" if adapter != "none" else ""
    if run.mixture:
        sets = counted(len(run.mixture.per_source), "preference set")
        what += f", {counted(run.mixture.train_rows, 'pair')} from {sets}"
    if run.trained:
        what += f", {counted(run.trained.steps, 'step')}"
    if run.trained and run.trained.best:
        what += f" ({run.trained.best.in_words})"
    if run.record.seconds is not None:
        what += f", {run_state(run.record)} after {duration(run.record.seconds)}"
    return what + "."


def _objective(run: RunFiles) -> str:
    """ "dpo (beta 0.1)", or each term of a sum so."""

    def named(loss: dict) -> str:
        return f"{loss.get('name', 'DPO')} (beta {loss.get('beta', '?')})"

    terms = run.config.get("losses") or ()
    return " + ".join(f"{term.get('weight', 1):g} {named(term)}" for term in terms) or named(
        run.config.get("loss", {})
    )


def headline_tiles(run: RunFiles) -> tuple[Tile, ...]:
    """Return the verdict: held-out numbers before and after."""
    result = run.evaluation
    if result is None:
        return ()
    tiles = []
    for name in TILES:
        before, after = result.before.get(name), result.after.get(name)
        if after is None:
            continue
        change = "" if before is None else f"{after - before:+.2f}"
        tiles.append(
            Tile(
                f"held-out {MEANINGS[name].label}" if name.startswith("rewards") else MEANINGS[name].label,
                tile_number(before),
                tile_number(after),
                change,
                tone_of(name, before, after),
            )
        )
    return tuple(tiles)


def tile_number(value: float | None) -> str:
    """Return two decimals for what is small, whole numbers for what is large."""
    return "" if value is None else f"{value:.2f}" if abs(value) < 10 else f"{value:,.0f}"


def release_blocks(run: RunFiles) -> tuple[Block, ...]:
    """Return the gate's verdict and a person's, where the run has them."""
    blocks: list[Block] = []
    if run.gate:
        rows = tuple(
            (
                check.rule,
                number(check.value) or "-",
                number(check.bound) or "-",
                f"{'holds' if check.passed else 'FAILS'} {check.detail}".strip(),
            )
            for check in run.gate
        )
        tones: tuple[Tone, ...] = tuple("good" if check.passed else "bad" for check in run.gate)
        columns = (Column("gate"), Column("value", "number"), Column("bound", "number"), Column("verdict"))
        blocks.append(Table(columns, rows, "", tones))
    if approval := run.approval:
        said = {"approve": "Approved", "reject": "Rejected"}[approval.decision]
        blocks.append(
            Text(
                f"{said} by {approval.name} on {approval.at:%Y-%m-%d %H:%M} UTC: {approval.reason}",
                "good" if approval.decision == "approve" else "bad",
            )
        )
    return tuple(blocks)


def what_failed(run: RunFiles) -> tuple[Block, ...]:
    """Return, for a run that did not end well: where, why, the log's end, and how to go on."""
    state = run_state(run.record)
    if state in ("completed", "running", "suspended"):
        return ()
    if state == "not released":
        return (Notice("Not released: nothing was uploaded or handed off", run.record.error or "", "bad"),)
    step = run.record.tasks[-1].name if run.record.tasks else "before the first task"
    path, lines = failed_log(run)
    why = run.record.error or {
        "killed": "The process of the run is gone and left no word: it was killed, or the machine went down.",
        "cancelled": "It was stopped from outside.",
    }.get(state, "")
    blocks: list[Block] = [Notice(f"{state.capitalize()} in: {step}", why, BADGES[state][1])]
    if lines:
        blocks += [Text(f"Last lines of {path}:", "muted"), Code("\n".join(lines))]
    return (*blocks, Text(f"{RESUME}"), Code(commands(run).splitlines()[-1]))
