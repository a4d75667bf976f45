"""Benchmarks before and after, in words and as rows: report, artifacts, model card and the question to an approver say the
same."""

from dpo_core.contract.benchmarks import Benchmarks, BenchmarkScore

TITLES = ("task", "metric", "documents", "before", "after", "change", "p")


def how_they_were_put(benchmarks: Benchmarks) -> str:
    """Return what the scores depend on besides the tasks, as sentences."""
    shots = "" if benchmarks.num_fewshot is None else f", {benchmarks.num_fewshot} examples before each"
    first = (
        ""
        if benchmarks.limit is None
        else f" Only the first {benchmarks.limit:,} documents of each task were asked."
    )
    asked = "in the checkpoint's chat template" if benchmarks.chat_template else "as plain text"
    return (
        f"Scores of lm-evaluation-harness {benchmarks.lm_eval}, asked {asked}{shots}.{first} Behind ± the standard error; "
        "of the change, that of the documents' own differences, and p, how often chance alone would do as much."
    )


def benchmark_rows(benchmarks: Benchmarks) -> list[dict[str, str]]:
    """Return one row a metric of the tasks that were asked for."""
    return [
        dict(zip(TITLES, cells_of(score), strict=True))
        for score in benchmarks.scores
        if score.part_of is None
    ]


def cells_of(score: BenchmarkScore) -> tuple[str, ...]:
    """Return the row of a metric."""
    metric, _, chosen = score.metric.partition(",")
    outcome = score.outcome
    return (
        score.task,
        metric if chosen in ("", "none") else f"{metric} ({chosen})",
        f"{score.num_documents:,}",
        with_error(score.before, score.before_stderr),
        with_error(score.after, score.after_stderr),
        with_error(score.change, score.paired_stderr, "+"),
        "" if outcome is None else "< 0.001" if outcome.chance < 0.001 else f"{outcome.chance:.2g}",
    )


def with_error(value: float, error: float | None, sign: str = "", digits: int = 4) -> str:
    """Return "0.4312 ± 0.0137"."""
    return f"{value:{sign}.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
