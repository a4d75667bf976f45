"""What the report says of the named sets of ``evaluation.sets``: what they hold, and their figures before and after."""

from dpo_core.contract.jobs import EvaluateResult
from dpo_core.contract.metric_names import MEANINGS, by_set, of_set, tone_of
from tasks.report.blocks import Block, Column, Heading, Samples, Table, Text, table_of
from tasks.report.samples import as_samples
from tasks.report.tables import change, counted, mixture_rows, number
from tasks.run.files import RunFiles

# The figures that stand side by side, of those that were measured; the others are told by `pairline compare`.
SHOWN = (
    "rewards/accuracies",
    "rewards/margins",
    "loss",
    "checker/pass_rate",
    "answers/mean_words",
    "kl/per_token",
)


def set_blocks(result: EvaluateResult, num_samples: int) -> tuple[Block, ...]:
    """Return each set's figures, before and after, and some answers to its prompts; none where no set is named."""
    of_before, of_after = by_set(result.before), by_set(result.after)
    if not of_after:
        return ()
    rows, tones = [], []
    for name, after in of_after.items():
        before = of_before.get(name, {})
        for metric in SHOWN:
            if metric not in after:
                continue
            rows.append(
                (
                    name,
                    number(after.get("pairs")),
                    MEANINGS[metric].label,
                    number(before.get(metric)),
                    number(after[metric]),
                    change(before.get(metric), after[metric]),
                )
            )
            tones.append(tone_of(of_set(name, metric), before.get(metric), after[metric]))
    columns = (
        Column("set"),
        Column("pairs", "number"),
        Column("metric"),
        *(Column(name, "number") for name in ("before", "after", "change")),
    )
    caption = "Sets of evaluation.sets: each is measured by itself, and none of its prompts was trained on."
    blocks: list[Block] = [
        Heading("By held-out set"),
        Table(columns, tuple(rows), caption, tuple(tones), toned_column=5),
    ]
    for name, answers in result.set_answers.items():
        if shown := as_samples(answers, num_samples):
            num_telling = sum(one.is_telling for one in shown)
            said = f"{name}: {num_telling} of {counted(len(answers), 'prompt')}, answered greedily by both checkpoints."
            blocks += [Text(said), Samples(shown)]
    return tuple(blocks)


def ledger_blocks(run: RunFiles) -> tuple[Block, ...]:
    """Return what became of the sets' rows; none where no set is named."""
    if run.sets is None:
        return ()
    names = [one.get("name", "?") for one in run.config.get("evaluation", {}).get("sets", ())]
    rows = [
        {"set": name} | {key: row[key] for key in ("source", "in", "kept", "truncated", "dropped")}
        for name, row in zip(names, mixture_rows(run.sets), strict=False)
    ]
    shared = sum(
        ledger.dropped.get("in_held_out_set", 0) for ledger in (run.mixture.per_source if run.mixture else ())
    )
    return (
        Heading("Held-out sets"),
        table_of(rows, {name: "number" for name in ("in", "kept", "truncated", "dropped")}),
        Text(f"Of the mixture {counted(shared, 'row')} went because a set has its prompt (in held out set)."),
    )
