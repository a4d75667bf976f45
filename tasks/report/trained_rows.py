"""What the report shows of the rows themselves: pairs as the trainer sees them."""

from dpo_core.contract.data_jobs import MixResult
from tasks.report.blocks import Block, Details, Heading, Marked, Text

ROWS_SHOWN = 5


def row_blocks(mixture: MixResult) -> list[Block]:
    """Return the first pairs with what the chat template wrote and which tokens are trained; none of a mixture of before."""
    if not mixture.samples:
        return []
    shown = mixture.samples[:ROWS_SHOWN]
    rows: list[Block] = [
        Marked(f"{number} of {sample.source}, {side}", tuple((span.kind, span.text) for span in spans))
        for number, sample in enumerate(shown, 1)
        for side, spans in (("chosen", sample.chosen), ("rejected", sample.rejected))
    ]
    said = "Grey: the prompt, no token of it is trained. Green: trained. Italic: behind the prompt and not trained."
    return [Heading("Rows as they are trained"), Text(said), Details(f"{len(shown)} pairs", tuple(rows))]
