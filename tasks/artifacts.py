"""Results of the steps as Prefect artifacts, by stable keys so that the UI shows their history.

An artifact is for looking at: failing to make one is logged and never fails a run.
"""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from dpo_core.jobs import CheckpointRef
from dpo_core.results import EvaluateResult, MixResult, ReferenceResult, TrainResult
from tasks.handoff.schema import RLVRHandoff
from tasks.publish.uploaded_checkpoint import UploadedCheckpoint
from tasks.report.curves import draw_curves, picture_inside
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


@never_fails
def show_mixture(result: MixResult) -> None:
    """Table ``mixture``: per source what came in, what was kept, and why rows were dropped."""
    create_table_artifact(mixture_rows(result), key="mixture", description=(
        f"{result.train_rows} pairs to train on, {result.held_out_rows} held out, {result.lengths.total} tokens, mean "
        f"lengths: prompt {result.lengths.mean_prompt:.0f}, chosen {result.lengths.mean_chosen:.0f}, rejected "
        f"{result.lengths.mean_rejected:.0f}. Fingerprint {result.data.fingerprint[:16]}."))


@never_fails
def show_reference(result: ReferenceResult) -> None:
    """Table ``reference``: rows, cache hits, speed."""
    create_table_artifact(reference_rows(result), key="reference", description="Reference log-probabilities")


@never_fails
def show_training(result: TrainResult) -> None:
    """Markdown ``training-curves`` with the picture inside, table ``training-metrics``."""
    picture = draw_curves(result.metrics_path)
    create_markdown_artifact(f"{picture_inside(picture)}\n\nThe same picture: `{picture}`. Its numbers: "
                             f"`{result.metrics_path}`.", key="training-curves",
                             description=f"{result.steps} steps, {result.pairs} pairs")
    create_table_artifact(training_rows(result), key="training-metrics", description="First and last step")


@never_fails
def show_evaluation(result: EvaluateResult, num_samples: int) -> None:
    """Table ``evaluation`` and markdown ``samples``, before beside after."""
    create_table_artifact(metrics_rows(result), key="evaluation", description=(
        f"{result.num_pairs} held-out pairs, {result.num_prompts} held-out prompts, before and after"))
    create_markdown_artifact(samples_markdown(result, num_samples), key="samples",
                             description="Greedy answers to held-out prompts")


@never_fails
def show_markdown(key: str, text: str, description: str) -> None:
    """A page of Markdown."""
    create_markdown_artifact(text, key=key, description=description)


@never_fails
def show_checkpoint(checkpoint: CheckpointRef) -> None:
    """Table ``checkpoint``: where the SFT checkpoint came from and what pins it."""
    create_table_artifact(checkpoint_rows(checkpoint), key="checkpoint", description="The SFT checkpoint")


@never_fails
def show_upload(uploaded: UploadedCheckpoint) -> None:
    """Table ``upload``: the published files and their hashes."""
    rows = [{"file": name, "sha256": sha256} for name, sha256 in uploaded.files.items()]
    create_table_artifact(rows, key="upload", description=f"{uploaded.uri}, revision {uploaded.revision}")


@never_fails
def show_handoff(handoff: RLVRHandoff, path: Path) -> None:
    """Markdown ``handoff``: the rules that hold, the probe, and the command that starts RLVR."""
    rules = markdown_table([rule.model_dump() for rule in handoff.rules])
    text = (f"`{path}`\n\n{rules}\nAsked {handoff.probe.prompt!r} it answered {handoff.probe.answer!r}.\n\n"
            f"```\n{handoff.grpo_command}\n```\n")
    create_markdown_artifact(text, key="handoff", description=f"Hand-off of {handoff.checkpoint.uri}")
