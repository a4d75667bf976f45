"""Results of the steps as rows and Markdown: what artifacts, the report and the terminal show. Pure."""

from collections.abc import Sequence
from typing import Any

from dpo_core.contract.data_jobs import MixResult
from dpo_core.contract.jobs import EvaluateResult, ReferenceResult, TrainResult
from dpo_core.contract.metric_names import SECOND_NAMES
from dpo_core.contract.refs import CheckpointRef
from tasks.report.blocks import table_of
from tasks.report.markdown import SIGNS, render_table
from tasks.report.quality import share_text
from tasks.report.samples import informative

Row = dict[str, Any]


def checkpoint_rows(checkpoint: CheckpointRef) -> list[Row]:
    """Return one row a file, the pinned whole first."""
    whole = {
        "file": f"{checkpoint.source} ({checkpoint.revision or 'pinned by its contents'})",
        "sha256": checkpoint.fingerprint,
    }
    return [whole, *({"file": name, "sha256": sha256} for name, sha256 in checkpoint.files.items())]


def mixture_rows(result: MixResult) -> list[Row]:
    """Return one row a source, and a total."""
    rows: list[Row] = [
        {
            "source": ledger.label,
            "formats": ", ".join(f"{name} {n}" for name, n in ledger.format.items()),
            "available": ledger.available_rows,
            "in": ledger.rows_in,
            "kept": ledger.kept,
            "truncated": ledger.truncated,
            "dropped": sum(ledger.dropped.values()),
            "dropped because": ", ".join(f"{reason} {n}" for reason, n in ledger.dropped.items() if n) or "-",
            "first dropped rows": "; ".join(
                f"{reason}: {', '.join(map(str, numbers))}"
                for reason, numbers in ledger.offenders.items()
                if numbers
            )
            or "-",
            "found and kept": ", ".join(f"{reason} {n}" for reason, n in ledger.counted.items() if n) or "-",
            "longer answer chosen": share_text((ledger,)),
            "content": ledger.content[:24],
        }
        for ledger in result.per_source
    ]
    total = {
        name: sum(row[name] for row in rows) for name in ("available", "in", "kept", "truncated", "dropped")
    }
    return [
        *rows,
        {
            "source": "total",
            "formats": "",
            **total,
            "dropped because": "",
            "first dropped rows": "",
            "found and kept": "",
            "longer answer chosen": share_text(result.per_source),
            "content": result.data.fingerprint[:24],
        },
    ]


def reference_rows(result: ReferenceResult) -> list[Row]:
    """Return one row."""
    return [
        {
            "rows": result.rows,
            "computed now": result.rows_computed,
            "from the cache": result.rows - result.rows_computed,
            "pairs per second": round(result.pairs_per_second, 2) or "",  # 0: others computed, or nobody
            "forward": result.forward,
            "fingerprint": result.reference.fingerprint[:24],
        }
    ]


def training_rows(result: TrainResult) -> list[Row]:
    """Return one row a metric: its value in the first and in the last step; the guards' figures before them."""
    guard = [
        {"metric": f"guard: {name}", "first step": number(value), "last step": ""}
        for name, value in result.guard.items()
    ]
    guard += [
        {"metric": f"base without its adapter: {name}", "first step": "", "last step": number(value)}
        for name, value in result.base_check.items()
    ]
    metrics = [
        {"metric": name, "first step": number(result.first_metrics.get(name)), "last step": number(value)}
        for name, value in result.last_metrics.items()
        if name not in SECOND_NAMES
    ]
    return guard + adapter_rows(result) + metrics


def adapter_rows(result: TrainResult) -> list[Row]:
    """Return what the adapter is and how much is trained; nothing where all weights are."""
    if result.adapter.kind == "none":
        return []
    facts = {
        "adapter": result.adapter.kind,
        "adapter: rank": result.adapter.rank,
        "adapter: alpha": number(result.adapter.alpha),
        "trained parameters": f"{result.trained_parameters:,}",
        "all parameters": f"{result.all_parameters:,}",
    }
    return [{"metric": name, "first step": "", "last step": value} for name, value in facts.items()]


def metrics_rows(result: EvaluateResult, only: Sequence[str] | None = None) -> list[Row]:
    """Return one row a metric, before and after, with the change. ``only`` chooses and orders metrics."""
    names = (
        only
        if only is not None
        else [name for name in dict.fromkeys([*result.before, *result.after]) if name not in SECOND_NAMES]
    )
    rows = []
    for name in names:
        before, after = result.before.get(name), result.after.get(name)
        if before is None and after is None:
            continue
        rows.append(
            {
                "metric": name,
                "before": number(before),
                "after": number(after),
                "change": change(before, after),
            }
        )
    return rows


def samples_markdown(
    result: EvaluateResult, num_samples: int, preferences: Sequence[float | None] = ()
) -> str:
    """Return prompts with both answers side by side, and the checker's verdict where the prompt has constraints; which ones:
    see ``informative``."""
    if not result.answers:
        return "No held-out prompt was answered (evaluation.num_prompts or data.held_out is 0)."
    rows = [
        {
            "prompt": answer.prompt,
            "before": SIGNS[answer.before_passes] + answer.before,
            "after": SIGNS[answer.after_passes] + answer.after,
        }
        for answer in informative(result.answers, num_samples, preferences)
    ]
    return markdown_table(rows)


def markdown_table(rows: Sequence[Row]) -> str:
    """Return a GitHub table; cells are cut, and cannot break out of it."""
    return render_table(table_of(rows)) + "\n" if rows else ""


def counted(count: int, what: str) -> str:
    """Return "1 step", "2,000 steps" """
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def number(value: float | None) -> str:
    """Return four significant digits; empty for None."""
    return "" if value is None else f"{value:.4g}"


def change(before: float | None, after: float | None) -> str:
    """Return the difference with its sign, four significant digits; empty where one is None, and 0 for what rounding of the
    two leaves."""
    if before is None or after is None:
        return ""
    difference = after - before
    return f"{0 if abs(difference) < 1e-12 * (abs(before) + abs(after)) else difference:+.4g}"
