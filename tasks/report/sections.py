"""What the report says of a run, section by section. Each takes the run's files and gives a section, or None."""

from dpo_core.contract.answers_file import side_by_side
from dpo_core.contract.drops import MEANING
from dpo_core.contract.jobs import EvaluateResult
from dpo_core.contract.metric_names import (
    MEANINGS,
    OF_A_SOURCE,
    TILES,
    of_source,
    split_by_set,
    split_by_source,
    tone_of,
)
from tasks.report.blocks import (
    Block,
    Charts,
    Code,
    Column,
    ColumnKind,
    Details,
    Heading,
    PageSection,
    Samples,
    Table,
    Text,
    Tone,
    table_of,
)
from tasks.report.curves import training_charts
from tasks.report.data_charts import length_charts
from tasks.report.held_out_sets import ledger_blocks, set_blocks
from tasks.report.lineage import lineage, lineage_chart
from tasks.report.quality import quality_blocks
from tasks.report.samples import as_samples
from tasks.report.tables import counted, metrics_rows, mixture_rows, number, training_rows
from tasks.report.trained_rows import row_blocks
from tasks.run.files import RunFiles

DEFAULT_SAMPLES = 8
SHOWN_BY_SOURCE = (*OF_A_SOURCE, "loss", "logps_per_token/chosen")


def evaluation_section(run: RunFiles) -> PageSection | None:
    """Return every metric before and after, with what it means."""
    result = run.evaluation
    if result is None:
        return None
    rows, tones = [], []
    for row in sorted(metrics_rows(result), key=lambda row: row["metric"] not in TILES):
        name = row["metric"]
        if split_by_source(name) or split_by_set(name):
            continue
        meaning = MEANINGS.get(name)
        rows.append(
            (
                meaning.label if meaning else name,
                row["before"],
                row["after"],
                row["change"],
                meaning.explanation if meaning else "",
            )
        )
        tones.append(tone_of(name, result.before.get(name), result.after.get(name)))
    columns = (
        Column("metric"),
        Column("before", "number"),
        Column("after", "number"),
        Column("change", "number"),
        Column("meaning", "words"),
    )
    words = (
        f"{counted(result.num_pairs, 'preference pair')} and {counted(result.num_prompts, 'prompt')} that training "
        "never saw. Before is the SFT checkpoint, after is the exported one."
    )
    caption = "Green and red: a change for the better or the worse, where a metric has such a direction."
    table = Table(columns, tuple(rows), caption, tuple(tones), toned_column=3)
    parts = (*by_source_blocks(result), *set_blocks(result, num_samples_shown(run)))
    return PageSection("Held-out evaluation", "evaluation", (Text(words), table, *parts))


def by_source_blocks(result: EvaluateResult) -> tuple[Block, ...]:
    """Return what is told of each source's held-out pairs, where a mixture has several."""
    sources = dict.fromkeys(found[0] for name in result.after if (found := split_by_source(name)))
    if not sources:
        return ()
    rows, tones = [], []
    for source in sources:
        names = [of_source(source, metric) for metric in SHOWN_BY_SOURCE]
        values = [number(values.get(name)) for name in names for values in (result.before, result.after)]
        rows.append((source, *values))
        tones.append(tone_of(OF_A_SOURCE[0], result.before.get(names[0]), result.after.get(names[0])))
    columns = (
        Column("source"),
        *(
            Column(f"{MEANINGS[metric].label}, {when}", "number")
            for metric in SHOWN_BY_SOURCE
            for when in ("before", "after")
        ),
    )
    caption = "Of each source's held-out pairs; a source without one is not listed."
    return Heading("By source"), Table(columns, tuple(rows), caption, tuple(tones), toned_column=2)


def num_samples_shown(run: RunFiles) -> int:
    """Return how many answers stand side by side."""
    shown: int = run.config.get("evaluation", {}).get("num_samples_shown", DEFAULT_SAMPLES)
    return shown


def samples_section(run: RunFiles) -> PageSection | None:
    """Return greedy answers side by side; before the evaluation those that training has kept."""
    if run.evaluation is None:
        return _samples_while_training(run)
    answers = run.evaluation.answers
    shown = num_samples_shown(run)
    if not answers or not shown:
        return PageSection(
            "Samples",
            "samples",
            (
                Text(
                    "No held-out prompt was answered (evaluation.num_prompts, "
                    "evaluation.num_samples_shown or data.held_out is 0)."
                ),
            ),
        )
    samples = as_samples(answers, shown, run.preferences)
    num_telling = sum(sample.is_telling for sample in samples)
    checked = (
        ""
        if all(sample.before_passes is None for sample in samples)
        else (
            " Where the prompt asks for something that code can check, the checker's verdict stands above the answer; "
            "instructions that are no longer kept, or only now, come first."
        )
    )
    if run.preferences:
        checked += " Elsewhere what the judge likes less than before comes first, then what it likes better."
    return PageSection(
        "Samples",
        "samples",
        (
            Text(
                f"{num_telling} of {counted(len(answers), 'held-out prompt')}, answered greedily by both "
                f"checkpoints.{checked} What the other answer does not have is marked."
            ),
            Samples(samples),
        ),
    )


def _samples_while_training(run: RunFiles) -> PageSection | None:
    """The newest answers of a policy that is trained, beside those before its first step."""
    if (found := side_by_side(run.kept_answers)) is None:
        return None
    step, answers = found
    words = (
        f"Answers before the first step, and after step {step:,}, the newest that training has kept. "
        "What the other answer does not have is marked."
    )
    samples = as_samples(answers, len(answers))
    return PageSection("Samples", "samples", (Text(words), Samples(samples)))


def training_section(run: RunFiles) -> PageSection | None:
    """Return the curves and the first and the last step."""
    charts, result = training_charts(run.metrics.rows, run.evaluations), run.trained
    if not charts:
        return None
    said = [
        f"{counted(result.steps, 'step')} over {counted(result.pairs, 'pair')}"
        if result
        else f"{counted(run.metrics.count, 'step')} recorded"
    ]
    if result and result.best:
        said.append(f"exported are {result.best.in_words}")
    if result and result.resumed_from_step:
        said.append(f"the last start went on from step {result.resumed_from_step}")
    faint = " Faint: each step; bold: the running mean." if run.metrics.count >= 24 else ""
    blocks: list[Block] = [
        Text(f"{'; '.join(said)}. Rewards and margins are in the loss's own units.{faint}"),
        Charts(charts),
    ]
    if result:
        rows = [
            {**row, "metric": MEANINGS[row["metric"]].label if row["metric"] in MEANINGS else row["metric"]}
            for row in training_rows(result)
        ]
        blocks.append(
            Details(
                "First and last step in numbers",
                (table_of(rows, {"first step": "number", "last step": "number"}),),
            )
        )
    return PageSection("Training", "training", tuple(blocks))


def data_section(run: RunFiles) -> PageSection | None:
    """Return the mixture, its drops by source and reason, and how long its pairs are."""
    mixture = run.mixture
    if mixture is None:
        return None
    rows = [
        {name: row[name] for name in ("source", "formats", "available", "in", "kept", "truncated", "dropped")}
        for row in mixture_rows(mixture)
    ]
    dropped = [
        (
            ledger.label,
            reason.replace("_", " "),
            f"{count:,}",
            f"{count / max(1, ledger.rows_in):.1%}",
            ": ".join(filter(None, (MEANING.get(reason, ""), " · ".join(ledger.details.get(reason, ()))))),
            ", ".join(map(str, ledger.offenders.get(reason, ())[:8])),
        )
        for ledger in mixture.per_source
        for reason, count in ledger.dropped.items()
        if count
    ]
    numbers: dict[str, ColumnKind] = {
        name: "number" for name in ("available", "in", "kept", "truncated", "dropped")
    }
    lengths = mixture.lengths
    blocks: list[Block] = [
        Text(
            f"{mixture.train_rows:,} pairs to train on, {mixture.held_out_rows:,} held out for the evaluation, "
            f"{lengths.total:,} tokens; the longest sequence has {lengths.max_sequence:,}."
        ),
        *(Text(warning, "warn") for warning in mixture.warnings),
        table_of(
            rows, numbers, "available: rows in the set; in: rows its amount asks for; kept + dropped = in."
        ),
        Heading("Dropped rows"),
    ]
    columns = (
        Column("source"),
        Column("reason"),
        Column("rows", "number"),
        Column("share", "number"),
        Column("meaning", "words"),
        Column("first rows", "code"),
    )
    blocks.append(Table(columns, tuple(dropped)) if dropped else Text("None."))
    blocks += [*quality_blocks(mixture), *ledger_blocks(run), *row_blocks(mixture)]
    charts = length_charts(lengths)
    words = "A pair's prompt is counted up to the token where its two sides part."
    blocks += [
        Heading("Lengths"),
        Text(words)
        if charts
        else Text(
            f"Means: prompt {lengths.mean_prompt:.0f}, chosen {lengths.mean_chosen:.0f}, "
            f"rejected {lengths.mean_rejected:.0f} "
            "tokens. This mixture was made before histograms were kept."
        ),
    ]
    return PageSection("Data", "data", (*blocks, *((Charts(charts),) if charts else ())))


def lineage_section(run: RunFiles) -> PageSection | None:
    """Return from source revision to uploaded commit."""
    nodes = lineage(run)
    chart = lineage_chart(nodes)
    if chart is None:
        return None
    columns = (Column("what"), Column("where", "code"), Column("commit or fingerprint", "code"))
    return PageSection(
        "Lineage",
        "lineage",
        (
            Text(
                "Each artefact is named by its content: the same inputs give the same fingerprint, wherever they lie."
            ),
            Charts((chart,)),
            Table(columns, tuple((node.what, node.where, node.pin) for node in nodes)),
        ),
    )


def rlvr_section(run: RunFiles) -> PageSection | None:
    """Return what the next stage is promised, and its command."""
    handoff = run.handoff
    if handoff is None:
        return None
    rows = tuple((check.rule, check.detail, "holds" if check.passed else "FAILS") for check in handoff.rules)
    tones: tuple[Tone, ...] = tuple("good" if check.passed else "bad" for check in handoff.rules)
    return PageSection(
        "Hand-off to RLVR",
        "handoff",
        (
            Text(
                f"Written to {run.handoff_path} after the checkpoint was loaded from its final place. Asked "
                f"“{handoff.probe.prompt}” it answered “{handoff.probe.answer}”."
            ),
            Table((Column("rule"), Column("found", "words"), Column("verdict")), rows, "", tones),
            Heading("The command that starts RLVR from here"),
            Code(handoff.grpo_command),
        ),
    )
