"""Results of the steps as Prefect artifacts. Keys are stable and carry the run family's name (``<name>-mixture``), so that
the UI shows the history of a family and two families do not mix.

An artifact is for looking at: failing to make one is logged and never fails a run.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from dpo_core.jobs import CheckpointRef
from dpo_core.results import EvaluateResult, MixResult, ReferenceResult, TrainResult
from tasks.gate.approval import Approval
from tasks.gate.rules import GateCheck, check_table, failed_checks
from tasks.handoff.schema import RLVRHandoff
from tasks.image.image_ref import SBOM_FILE, ImageRef
from tasks.publish.uploaded_checkpoint import UploadedCheckpoint
from tasks.report.blocks import Charts, Section
from tasks.report.curves import read_metrics, training_charts
from tasks.report.markdown import fenced, render_section
from tasks.report.run_folder import run_family
from tasks.report.tables import (
    checkpoint_rows,
    markdown_table,
    metrics_rows,
    mixture_rows,
    reference_rows,
    samples_markdown,
    training_rows,
)

log = logging.getLogger(__name__)


def never_fails(show: Callable[..., None]) -> Callable[..., None]:
    """Log what goes wrong while an artifact is made, and go on."""

    @functools.wraps(show)
    def guarded(*args: Any) -> None:
        try:
            show(*args)
        except Exception as error:
            log.warning("The artifact of %s was not made: %s: %s", show.__name__, type(error).__name__, error)

    return guarded


def artifact_key(what: str, family: str | None = None) -> str:
    """The key of an artifact of the run that is going on, or of a named family."""
    return f"{family or run_family()}-{what}"


@never_fails
def show_mixture(result: MixResult) -> None:
    """Table ``<name>-mixture``: per source what came in, what was kept, and why rows were dropped."""
    create_table_artifact(mixture_rows(result), key=artifact_key("mixture"), description=(
        f"{result.train_rows} pairs to train on, {result.held_out_rows} held out, {result.lengths.total} tokens, mean "
        f"lengths: prompt {result.lengths.mean_prompt:.0f}, chosen {result.lengths.mean_chosen:.0f}, rejected "
        f"{result.lengths.mean_rejected:.0f}. Fingerprint {result.data.fingerprint[:16]}."))


@never_fails
def show_reference(result: ReferenceResult) -> None:
    """Table ``<name>-reference``: rows, cache hits, speed."""
    create_table_artifact(reference_rows(result), key=artifact_key("reference"), description="Reference log-probabilities")


@never_fails
def show_training(result: TrainResult) -> None:
    """Markdown ``<name>-training-curves`` with the pictures inside, table ``<name>-training-metrics``."""
    charts = Section("", "", (Charts(training_charts(read_metrics(result.metrics_path))),))
    create_markdown_artifact(f"{render_section(charts)}\nIts numbers: `{result.metrics_path}`.",
                             key=artifact_key("training-curves"), description=f"{result.steps} steps, {result.pairs} pairs")
    create_table_artifact(training_rows(result), key=artifact_key("training-metrics"), description="First and last step")


@never_fails
def show_evaluation(result: EvaluateResult, num_samples: int) -> None:
    """Table ``<name>-evaluation`` and markdown ``<name>-samples``, before beside after."""
    create_table_artifact(metrics_rows(result), key=artifact_key("evaluation"), description=(
        f"{result.num_pairs} held-out pairs, {result.num_prompts} held-out prompts, before and after"))
    create_markdown_artifact(samples_markdown(result, num_samples), key=artifact_key("samples"),
                             description="Greedy answers to held-out prompts")


@never_fails
def show_image(image: ImageRef, record: Path) -> None:
    """Table ``<name>-image``: what the steps run in, and what it was made of."""
    rows = [{"what": name, "value": "" if value is None else str(value)} for name, value in image.model_dump().items()]
    dirty = ", built from a dirty tree" if image.dirty else ""
    create_table_artifact(rows, key=artifact_key("image"), description=(
        f"Steps run in {image.reference}, {image.size_bytes / 1e9:.2f} GB{dirty}. Its packages, versions and licences: "
        f"{record / SBOM_FILE}"))


@never_fails
def show_checkpoint(checkpoint: CheckpointRef) -> None:
    """Table ``<name>-checkpoint``: where the SFT checkpoint came from and what pins it."""
    create_table_artifact(checkpoint_rows(checkpoint), key=artifact_key("checkpoint"), description="The SFT checkpoint")


@never_fails
def show_gate(checks: Sequence[GateCheck]) -> None:
    """Table ``<name>-gate``: rule, value, bound."""
    failed = failed_checks(checks)
    create_table_artifact(check_table(checks), key=artifact_key("gate"),
                          description=f"Not passed: {failed}" if failed else "Passed")


@never_fails
def show_approval(approval: Approval) -> None:
    """Table ``<name>-approval``: who decided what, when and why."""
    create_table_artifact([approval.model_dump(mode="json")], key=artifact_key("approval"),
                          description=f"{approval.decision} by {approval.name}")


@never_fails
def show_upload(uploaded: UploadedCheckpoint) -> None:
    """Table ``<name>-upload``: the published files and their hashes."""
    rows = [{"file": name, "sha256": sha256} for name, sha256 in uploaded.files.items()]
    create_table_artifact(rows, key=artifact_key("upload"), description=f"{uploaded.uri}, revision {uploaded.revision}")


@never_fails
def show_handoff(handoff: RLVRHandoff, path: Path) -> None:
    """Markdown ``<name>-handoff``: the rules that hold, the probe, and the command that starts RLVR."""
    rules = markdown_table([rule.model_dump() for rule in handoff.rules])
    text = (f"`{path}`\n\n{rules}\nAsked {handoff.probe.prompt!r} it answered {handoff.probe.answer!r}.\n\n"
            f"{fenced(handoff.grpo_command)}\n")
    create_markdown_artifact(text, key=artifact_key("handoff"), description=f"Hand-off of {handoff.checkpoint.uri}")
