"""The run on one page: ``report.md`` in its folder and as artifacts, with the lineage from the sources to the hand-off."""

from dataclasses import dataclass
from pathlib import Path

from dpo_core.jobs import CheckpointRef
from dpo_core.results import EvaluateResult, ExportResult, MixResult, ReferenceResult, TrainResult
from dpo_core.store import write_bytes
from tasks.artifacts import never_fails, show_markdown
from tasks.handoff.schema import RLVRHandoff
from tasks.report.curves import draw_curves, picture_inside
from tasks.report.tables import (
    markdown_table,
    metrics_rows,
    mixture_rows,
    reference_rows,
    samples_markdown,
    training_rows,
)

REPORT_FILE = "report.md"


@dataclass(frozen=True, slots=True)
class StageResults:
    """What every task of a finished run returned."""

    policy: CheckpointRef
    mixture: MixResult
    reference_checkpoint: CheckpointRef | None
    reference: ReferenceResult | None
    trained: TrainResult
    exported: ExportResult
    evaluation: EvaluateResult
    handoff: RLVRHandoff
    handoff_path: Path


def lineage(results: StageResults) -> list[tuple[str, str, str]]:
    """(what, where it is or what it is called, its revision or fingerprint), from the sources to the hand-off."""
    policy, uploaded = results.policy, results.handoff.checkpoint
    links = [("SFT checkpoint", policy.source, f"commit {policy.revision}" if policy.revision else policy.fingerprint)]
    links += [("preference set", ledger.label, ledger.content) for ledger in results.mixture.per_source]
    links.append(("mixture", str(results.mixture.data.path), results.mixture.data.fingerprint))
    if results.reference and results.reference_checkpoint:
        links.append(("reference model", results.reference_checkpoint.source, results.reference_checkpoint.fingerprint))
        links.append(("reference", str(results.reference.reference.path), results.reference.reference.fingerprint))
    return [*links, ("training", str(results.trained.weights_path), results.trained.weights_fingerprint),
            ("export", str(results.exported.path), results.exported.fingerprint),
            ("upload", uploaded.uri, uploaded.revision),
            ("hand-off", str(results.handoff_path), results.handoff.fingerprint)]


def lineage_markdown(results: StageResults) -> str:
    """The lineage as a table."""
    return markdown_table([{"what": what, "where": where, "revision or fingerprint": pin}
                           for what, where, pin in lineage(results)])


def report_markdown(title: str, results: StageResults, num_samples: int, curves: str) -> str:
    """The whole page. ``curves``: the training curves as Markdown."""
    reference = markdown_table(reference_rows(results.reference)) if results.reference else "The loss needs none.\n"
    sections = {
        "Held-out evaluation, before and after": markdown_table(metrics_rows(results.evaluation)),
        "Samples": samples_markdown(results.evaluation, num_samples),
        "Mixture": markdown_table(mixture_rows(results.mixture)),
        "Reference": reference,
        "Training": f"{curves}\n\n{markdown_table(training_rows(results.trained))}",
        "Lineage": lineage_markdown(results),
        "RLVR": f"`{results.handoff_path}`\n\n```\n{results.handoff.grpo_command}\n```\n",
    }
    return f"# {title}\n\n" + "\n".join(f"## {heading}\n\n{text}" for heading, text in sections.items())


@never_fails
def show_report(title: str, results: StageResults, num_samples: int, folder: Path) -> None:
    """Write ``report.md`` and leave the artifacts ``lineage`` and ``report``."""
    picture = draw_curves(results.trained.metrics_path)
    on_disk = report_markdown(title, results, num_samples, f"![training curves]({picture})")
    write_bytes(folder / REPORT_FILE, on_disk.encode())
    show_markdown("lineage", lineage_markdown(results), "What this checkpoint is made of")
    show_markdown("report", report_markdown(title, results, num_samples, picture_inside(picture)), "The run on one page")
