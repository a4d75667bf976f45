"""Token lengths of a mixture as histograms."""

from dpo_core.contract.data_jobs import LengthStats
from tasks.report.svg import Chart, Labels, histogram

COLOURS = {"prompt": "grey", "chosen": "blue", "rejected": "orange"}


def length_charts(lengths: LengthStats) -> tuple[Chart, ...]:
    """Return prompt, chosen, rejected; the two answers over one scale. None for a mixture that has no histograms."""
    answers = [lengths.histograms[name] for name in ("chosen", "rejected") if name in lengths.histograms]
    answers_end = max((part.bin_tokens * len(part.counts) for part in answers), default=0)
    charts = []
    for name, part in lengths.histograms.items():
        marks = (
            (part.median, f"median {part.median:.0f}"),
            (part.p95, f"95 % within {part.p95:.0f}"),
            (float(part.longest), f"longest {part.longest}"),
        )
        charts.append(
            histogram(
                Labels(f"Length of {name}", "tokens", "pairs"),
                part.bin_tokens,
                part.counts,
                COLOURS[name],
                marks,
                x_end=None if name == "prompt" else answers_end,
            )
        )
    return tuple(charts)
