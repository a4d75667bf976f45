"""``pairline show-rows``: pairs as the trainer sees them, with what the chat template wrote and which tokens are trained."""

from rich.console import Console

from dpo_core.contract.row_warnings import dropped_sentence
from flows.settings.stage_config import StageConfig
from flows.terminal.first_look import look_at_rows
from tasks.text.marks import MARKS, marked
from tasks.text.terminal import show_styled, tell

STYLES = {"prompt": "dim", "trained": "bold green", "untrained": "yellow"}


def show_rows(config: StageConfig, count: int, console: Console) -> None:
    """Print the first ``count`` pairs of a recipe's mixture, or of its sources' first rows if it is not made yet,
    behind what was dropped of them and what is worth a second look.

    Raises ``CheckpointError``, ``DataError``, ``ConfigError``, ``RemoteError``.
    """
    mixed, is_whole = look_at_rows(config)
    of = "the mixture" if is_whole else "the first rows of each source, as the mixture is not made yet"
    shown = mixed.samples[:count]
    tell(console, f"{len(shown)} of {mixed.train_rows:,} pairs to train on, of {of}:", is_cut=True)
    for one in mixed.per_source:
        if said := dropped_sentence(one.label, one.rows_in, one.dropped):
            tell(console, said, is_cut=True)
    for warning in mixed.warnings:
        tell(console, warning, is_cut=True)
    show_styled(console, [(f"{marked(kind, kind)} ", STYLES[kind]) for kind in MARKS])
    for number, sample in enumerate(shown, 1):
        for side, spans in (("chosen", sample.chosen), ("rejected", sample.rejected)):
            tell(console, f"\n--- {number} of {sample.source}, {side}")
            show_styled(console, [(marked(span.kind, span.text), STYLES[span.kind]) for span in spans])
