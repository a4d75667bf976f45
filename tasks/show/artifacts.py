"""Results of the steps as Prefect artifacts. Keys are stable and carry the run family's name (``<name>-mixture``), so that
the UI shows the history of a family and two families do not mix.

An artifact is for looking at: failing to make one is logged and never fails a run. Prefect's pages read descriptions as
Markdown, and its first one the cells of tables, too.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from dpo_core.contract.benchmarks import Benchmarks
from dpo_core.contract.data_jobs import MixResult
from dpo_core.contract.jobs import EvaluateResult, ReferenceResult, TrainResult
from dpo_core.contract.judge_config import JudgeConfig
from dpo_core.contract.judgement import JudgeFigures
from dpo_core.contract.metrics_file import EVALUATIONS_FILE, read_metrics
from dpo_core.contract.refs import CheckpointRef
from dpo_core.contract.visible import one_line, visible
from tasks.gate.approval import Approval
from tasks.gate.rules import GateCheck, check_table, failed_checks
from tasks.handoff.schema import RLVRHandoff
from tasks.image.image_ref import SBOM_FILE, ImageRef
from tasks.publish.uploaded_checkpoint import UploadedCheckpoint
from tasks.report.blocks import Charts, PageSection
from tasks.report.curves import training_charts
from tasks.report.markdown import render_section
from tasks.report.tables import (
    checkpoint_rows,
    markdown_table,
    metrics_rows,
    mixture_rows,
    reference_rows,
    samples_markdown,
    training_rows,
)
from tasks.run.step_metrics import read_steps
from tasks.text.escape import markdown_block, markdown_code, markdown_text
from tasks.text.judgement import how_it_judged, judgement_rows
from tasks.text.scores import benchmark_rows, how_they_were_put

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


def table_artifact(rows: Sequence[dict[str, Any]], key: str, description: str) -> None:
    """Make a table artifact; cells and description are text of any origin."""
    shown = [
        {one_line(name): markdown_text(cell) if isinstance(cell, str) else cell for name, cell in row.items()}
        for row in rows
    ]
    create_table_artifact(shown, key=key, description=markdown_text(description))


def markdown_artifact(markdown: str, key: str, description: str) -> UUID:
    """Make a Markdown artifact; ``description`` is text of any origin, what ``markdown`` holds of others is escaped
    already.
    """
    made = create_markdown_artifact(visible(markdown), key=key, description=markdown_text(description))
    return cast(UUID, made)  # to be awaited only where an event loop runs


def change_artifact(artifact: UUID, markdown: str, description: str) -> None:
    """Let a Markdown artifact say something else in the same place."""
    update = ArtifactUpdate(data=visible(markdown), description=markdown_text(description))
    with get_client(sync_client=True) as client:
        client.update_artifact(artifact, update)


def artifact_key(what: str, family: str) -> str:
    """Return the key of an artifact of a run family (``config.name``)."""
    return f"{family}-{what}"


@never_fails
def show_mixture(result: MixResult, family: str) -> None:
    """Make table ``<name>-mixture``: per source what came in, what was kept, and why rows were dropped."""
    table_artifact(
        mixture_rows(result),
        artifact_key("mixture", family),
        (
            f"{result.train_rows} pairs to train on, {result.held_out_rows} held out, {result.lengths.total} tokens, mean "
            f"lengths: prompt {result.lengths.mean_prompt:.0f}, chosen {result.lengths.mean_chosen:.0f}, rejected "
            f"{result.lengths.mean_rejected:.0f}. Fingerprint {result.data.fingerprint[:16]}. "
            + " ".join(result.warnings)
        ),
    )


@never_fails
def show_sets(result: MixResult, names: Sequence[str], family: str) -> None:
    """Make table ``<name>-held-out-sets``: of each named set what came in, what was kept, and why rows were dropped."""
    rows = [
        {"set": name, **row} for name, row in zip(names, mixture_rows(result), strict=False)
    ]  # the last one is of all
    table_artifact(rows, artifact_key("held-out-sets", family), "Measured, and never trained on")


@never_fails
def show_reference(result: ReferenceResult, family: str) -> None:
    """Make table ``<name>-reference``: rows, cache hits, speed."""
    table_artifact(reference_rows(result), artifact_key("reference", family), "Reference log-probabilities")


@never_fails
def show_training(result: TrainResult, family: str) -> None:
    """Make Markdown ``<name>-training-curves`` with the pictures inside, table ``<name>-training-metrics``."""
    evaluations = read_metrics(result.metrics_path.with_name(EVALUATIONS_FILE))
    charts = PageSection(
        "", "", (Charts(training_charts(read_steps(result.metrics_path).rows, evaluations)),)
    )
    markdown_artifact(
        f"{render_section(charts)}\nIts numbers: {markdown_code(str(result.metrics_path))}.",
        artifact_key("training-curves", family),
        f"{result.steps} steps, {result.pairs} pairs"
        + (f"; exported are {result.best.in_words}" if result.best else ""),
    )
    table_artifact(training_rows(result), artifact_key("training-metrics", family), "First and last step")


@never_fails
def show_evaluation(result: EvaluateResult, num_samples: int, family: str) -> None:
    """Make table ``<name>-evaluation``, and what ``show_samples`` makes."""
    table_artifact(
        metrics_rows(result),
        artifact_key("evaluation", family),
        (f"{result.num_pairs} held-out pairs, {result.num_prompts} held-out prompts, before and after"),
    )
    show_samples(result, num_samples, family)


@never_fails
def show_samples(
    result: EvaluateResult, num_samples: int, family: str, preferences: Sequence[float | None] = ()
) -> None:
    """Make markdown ``<name>-samples``, before beside after. ``preferences``: a judge's, once there are any."""
    markdown_artifact(
        samples_markdown(result, num_samples, preferences),
        artifact_key("samples", family),
        "Greedy answers to held-out prompts",
    )


@never_fails
def show_benchmarks(benchmarks: Benchmarks, family: str) -> None:
    """Make table ``<name>-benchmarks``, before beside after."""
    table_artifact(
        benchmark_rows(benchmarks), artifact_key("benchmarks", family), how_they_were_put(benchmarks)
    )


@never_fails
def show_judgement(judgement: JudgeFigures, config: JudgeConfig, family: str) -> None:
    """Make table ``<name>-judge``: how often the trained model's answers win, and by whose word."""
    rows = judgement_rows(judgement, config.price_in, config.price_out)
    table_artifact(rows, artifact_key("judge", family), how_it_judged(judgement))


@never_fails
def show_image(image: ImageRef, record: Path, family: str) -> None:
    """Make table ``<name>-image``: what the steps run in, and what it was made of."""
    rows = [
        {"what": name, "value": "" if value is None else str(value)}
        for name, value in image.model_dump().items()
    ]
    dirty = ", built from a dirty tree" if image.dirty else ""
    table_artifact(
        rows,
        artifact_key("image", family),
        (
            f"Steps run in {image.reference}, {image.size_bytes / 1e9:.2f} GB{dirty}. Its packages, versions and licences: "
            f"{record / SBOM_FILE}"
        ),
    )


@never_fails
def show_checkpoint(checkpoint: CheckpointRef, family: str) -> None:
    """Make table ``<name>-checkpoint``: where the SFT checkpoint came from and what pins it."""
    table_artifact(checkpoint_rows(checkpoint), artifact_key("checkpoint", family), "The SFT checkpoint")


@never_fails
def show_gate(checks: Sequence[GateCheck], family: str) -> None:
    """Make table ``<name>-gate``: rule, value, bound."""
    failed = failed_checks(checks)
    table_artifact(
        check_table(checks), artifact_key("gate", family), f"Not passed: {failed}" if failed else "Passed"
    )


@never_fails
def show_approval(approval: Approval, family: str) -> None:
    """Make table ``<name>-approval``: who decided what, when and why."""
    table_artifact(
        [approval.model_dump(mode="json")],
        artifact_key("approval", family),
        f"{approval.decision} by {approval.name}",
    )


@never_fails
def show_upload(uploaded: UploadedCheckpoint, family: str) -> None:
    """Make table ``<name>-upload``: the published files and their hashes."""
    rows = [{"file": name, "sha256": sha256} for name, sha256 in uploaded.files.items()]
    table_artifact(rows, artifact_key("upload", family), f"{uploaded.uri}, revision {uploaded.revision}")


@never_fails
def show_handoff(handoff: RLVRHandoff, path: Path, family: str) -> None:
    """Make Markdown ``<name>-handoff``: the rules that hold, the probe, and the command that starts RLVR."""
    rules = markdown_table([rule.model_dump() for rule in handoff.rules])
    asked, answer = markdown_text(repr(handoff.probe.prompt)), markdown_text(repr(handoff.probe.answer))
    text = (
        f"{markdown_code(str(path))}\n\n{rules}\nAsked {asked} it answered {answer}.\n\n"
        f"{markdown_block(handoff.grpo_command)}\n"
    )
    markdown_artifact(text, artifact_key("handoff", family), f"Hand-off of {handoff.checkpoint.uri}")
