"""Task: everything that the stage made -> ``handoff.json``, written last, for the RLVR run."""

from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from dpo_core.contract.benchmarks import Benchmarks
from dpo_core.contract.errors import HandoffRefused
from dpo_core.contract.jobs import AnswerResult, ExportResult
from dpo_core.contract.keep_best import BestStep
from dpo_core.contract.refs import CheckpointRef
from dpo_core.contract.section import Section, content_of
from dpo_core.contract.store import exclusive, fingerprint, write_json
from tasks.gate.approval import Release
from tasks.handoff.config import HandoffConfig
from tasks.handoff.final_place import opened, probe, verify_place
from tasks.handoff.grpo_command import grpo_command
from tasks.handoff.rlvr_rules import check_rules, failed_rules, template_sha256
from tasks.handoff.schema import (
    HANDOFF_FILE,
    SCHEMA_VERSION,
    Parent,
    Probe,
    RLVRHandoff,
    Tokens,
    read_handoff,
)
from tasks.handoff.signature import signed, signing_key
from tasks.launch.workplace import Workplace
from tasks.publish.uploaded_checkpoint import UploadedCheckpoint
from tasks.run.retry_policy import worth_a_retry


class HandoffInputs(Section):
    """What the earlier steps left. ``token_block``: name of the Secret block, for a private repository."""

    name: str
    uploaded: UploadedCheckpoint
    export: ExportResult
    parent: CheckpointRef
    data_fingerprint: str
    reference_fingerprint: str | None = None
    metrics_before: dict[str, float] = {}
    metrics_after: dict[str, float] = {}
    release: Release = Release()
    best: BestStep | None = None
    benchmarks: Benchmarks | None = None
    token_block: str | None = None

    def content_fingerprint(self, config: HandoffConfig) -> str:
        """Return the fingerprint of all that reaches the hand-off; not of how long a step took or whether it was
        reused.
        """
        # Without them the fingerprint is that of before there were any.
        of_some: dict[str, Section] = {"best": self.best} if self.best else {}
        of_some |= {"benchmarks": self.benchmarks} if self.benchmarks else {}
        return fingerprint(
            {
                "schema": SCHEMA_VERSION,
                "name": self.name,
                "config": content_of(config),
                "uploaded": self.uploaded.model_copy(update={"reused": False}),
                "weights": self.export.fingerprint,
                "parent": self.parent.fingerprint,
                "parent_source": [self.parent.source, self.parent.revision],
                "data": self.data_fingerprint,
                "reference": self.reference_fingerprint,
                "metrics": [self.metrics_before, self.metrics_after],
                "release": self.release,
                **of_some,
            }
        )


def handoff_path(store_root: Path, inputs: HandoffInputs, config: HandoffConfig) -> Path:
    """Return where the hand-off of these inputs lives."""
    return store_root.resolve() / "handoff" / inputs.content_fingerprint(config)[:16] / HANDOFF_FILE


def reusable(path: Path, inputs: HandoffInputs, config: HandoffConfig) -> RLVRHandoff | None:
    """Return an earlier hand-off of the same inputs, if it is whole and a local checkpoint is still what it says. A
    commit cannot change."""
    try:
        handoff = read_handoff(path)
        if inputs.uploaded.directory is not None:
            verify_place(inputs.uploaded.directory, inputs.uploaded)
    except HandoffRefused:
        return None
    return handoff if handoff.inputs_fingerprint == inputs.content_fingerprint(config) else None


def compose(inputs: HandoffInputs, config: HandoffConfig, folder: Path, answer: AnswerResult) -> RLVRHandoff:
    """Return the hand-off for a checkpoint that was loaded from ``folder`` and answered. Raises ``HandoffRefused``."""
    rules = check_rules(folder, inputs.uploaded, answer)
    if failed := failed_rules(rules):
        raise HandoffRefused(
            f"The checkpoint at {inputs.uploaded.uri} cannot start an RLVR run: {failed}. No hand-off was "
            "written."
        )
    tokens = Tokens(
        tokenizer_fingerprint=inputs.export.tokenizer_fingerprint,
        pad_token=answer.pad_token,
        chat_template_sha256=template_sha256(folder),
        pad_token_id=answer.pad_token_id,
        eos_token_ids=answer.eos_token_ids,
        tokenizer_size=answer.tokenizer_size,
        vocab_size=answer.vocab_size,
        num_parameters=answer.num_parameters,
    )
    parent = Parent(**inputs.parent.model_dump(include=set(Parent.model_fields)))
    return RLVRHandoff(
        name=inputs.name,
        checkpoint=inputs.uploaded.model_copy(update={"reused": False}),
        tokens=tokens,
        rules=rules,
        weights_fingerprint=inputs.export.fingerprint,
        allow_remote_code=inputs.parent.allow_remote_code,
        parent=parent,
        data_fingerprint=inputs.data_fingerprint,
        reference_fingerprint=inputs.reference_fingerprint,
        metrics_before=inputs.metrics_before,
        metrics_after=inputs.metrics_after,
        release=inputs.release,
        best=inputs.best,
        benchmarks=inputs.benchmarks,
        probe=Probe(prompt=config.probe_prompt, answer=answer.answers[0]),
        grpo_command=grpo_command(inputs.uploaded, config, inputs.name),
        inputs_fingerprint=inputs.content_fingerprint(config),
    ).sealed()


# Retried because a Hub that just took the upload may not serve it yet, and a killed probe left nothing behind.
@task(
    name="hand off to RLVR",
    retries=3,
    retry_delay_seconds=[10, 30, 90],
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def hand_off_rlvr(inputs: HandoffInputs, config: HandoffConfig, place: Workplace) -> RLVRHandoff:
    """Load the checkpoint from its final place, have it answer, check the rules, then write ``handoff_path(...)``, signed.

    Raises ``HandoffRefused`` if a file differs or a rule fails, ``ConfigError`` for the key, the errors of ``answer``.
    """
    path, key = handoff_path(place.store, inputs, config), signing_key(config)
    # Another run of the same inputs is waited for: its hand-off is this one's.
    with exclusive(path.parent, wait_seconds=place.launcher.compute.step_timeout_seconds):
        known = handoff = reusable(path, inputs, config)
        if handoff is None:
            path.unlink(missing_ok=True)
            with opened(inputs.uploaded, inputs.token_block, path.parent) as folder:
                answer = probe(
                    folder,
                    inputs.uploaded,
                    config.probe_prompt,
                    inputs.parent.allow_remote_code,
                    path.parent,
                    place,
                )
                handoff = compose(inputs, config, folder, answer)
        if (handoff := signed(handoff, key)) != known:
            write_json(path, handoff)
    get_run_logger().info("handoff: %s", path)
    return handoff
