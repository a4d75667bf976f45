"""What the report says of the data's quality: how often the longer answer is chosen, and which rows were found."""

from dpo_core.contract.data_jobs import MixResult, SourceLedger
from dpo_core.contract.length_bias import length_bias_warning, longer_is_chosen
from tasks.report.blocks import Block, Column, Heading, Table, Text

ROWS_SHOWN = 60  # of found rows; the ledger holds the first of each source and reason


def quality_blocks(mixture: MixResult) -> list[Block]:
    """Return length bias, overlap with evaluation sets, and found rows where rows were looked for."""
    return [*_length_bias(mixture), *_evaluation_sets(mixture), *_found_rows(mixture)]


def share_text(ledgers: tuple[SourceLedger, ...]) -> str:
    """Return "61.2% of 1,200 pairs": how often the longer answer is the chosen one; a dash where that was not counted."""
    share, pairs = longer_is_chosen(ledgers)
    return "–" if share is None else f"{share:.1%} of {pairs:,} pairs"


def _length_bias(mixture: MixResult) -> list[Block]:
    ledgers = mixture.per_source
    if longer_is_chosen(ledgers)[0] is None:
        return []
    warning = length_bias_warning(ledgers)
    said = f"The longer answer, in tokens, is the chosen one in {share_text(ledgers)} of unequal length."
    blocks: list[Block] = [Heading("Length bias"), Text(said), *([Text(warning, "warn")] if warning else [])]
    if len(ledgers) > 1:
        rows = tuple((ledger.label, share_text((ledger,))) for ledger in ledgers)
        blocks.append(Table((Column("source"), Column("longer answer chosen", "number")), rows))
    return blocks


def _evaluation_sets(mixture: MixResult) -> list[Block]:
    if not mixture.evaluation_sets:
        return []
    columns = (
        Column("evaluation set"),
        Column("instances", "number"),
        Column("too short to match", "number"),
        Column("met in a row", "number"),
        Column("share", "number"),
        Column("rows", "number"),
    )
    rows = tuple(
        (
            one.label,
            f"{one.instances:,}",
            f"{one.too_short:,}",
            f"{one.overlapping:,}",
            f"{one.overlapping / max(1, one.instances):.1%}",
            f"{one.rows:,}",
        )
        for one in mixture.evaluation_sets
    )
    said = "Tulu 3 calls a training set contaminated from 2 % of a set's instances on."
    return [Heading("Overlap with evaluation sets"), Table(columns, rows, said)]


def _found_rows(mixture: MixResult) -> list[Block]:
    found = [(ledger, finding) for ledger in mixture.per_source for finding in ledger.findings]
    if not found:
        return []
    rows = tuple(
        (
            ledger.label,
            str(finding.row),
            finding.reason.replace("_", " "),
            f"{finding.like} row {finding.like_row}",
            f"{finding.similarity:.2f}",
            "dropped" if finding.is_dropped else "counted",
            finding.text,
            finding.like_text,
        )
        for ledger, finding in found[:ROWS_SHOWN]
    )
    total = sum(
        sum(ledger.counted.values())
        + sum(
            ledger.dropped.get(reason, 0)
            for reason in {one.reason for one in ledger.findings if one.is_dropped}
        )
        for ledger in mixture.per_source
    )
    columns = (
        Column("source"),
        Column("row", "number"),
        Column("what"),
        Column("like"),
        Column("similarity", "number"),
        Column("and is"),
        Column("its prompt", "words"),
        Column("the other's", "words"),
    )
    return [
        Heading("Rows found by checks of quality"),
        Table(columns, rows, f"{len(rows)} of {total:,} rows."),
    ]
