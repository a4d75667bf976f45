"""The receiving side of a hand-off: nothing in it is believed before it was checked here, and what cannot be is called a
claim."""

import re
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from dpo_core.contract.errors import HandoffRefused
from dpo_core.contract.section import Section
from dpo_core.contract.store import exclusive
from tasks.gate.approval import Release
from tasks.handoff.claimed_place import check_before_load, place_to_open, refuse_failed
from tasks.handoff.final_place import opened, probe
from tasks.handoff.grpo_command import grpo_command
from tasks.handoff.intake_config import IntakeConfig
from tasks.handoff.rlvr_rules import check_rules, template_sha256
from tasks.handoff.schema import Parent, RLVRHandoff, RuleCheck, read_handoff
from tasks.handoff.signature import check_signature
from tasks.launch.workplace import Workplace
from tasks.publish.uploaded_checkpoint import UploadedCheckpoint
from tasks.run.retry_policy import worth_a_retry
from tasks.run.store_root import prepare_store

MAX_PROMPT_CHARACTERS = 20_000


class Claims(Section):
    """What a hand-off says that nobody can check on this side: the word of whoever wrote it."""

    name: str
    handoff_fingerprint: str
    weights_fingerprint: str
    tokenizer_fingerprint: str
    parent: Parent
    data_fingerprint: str
    reference_fingerprint: str | None
    metrics_before: dict[str, float]
    metrics_after: dict[str, float]
    release: Release


class AcceptedHandoff(Section):
    """A hand-off that holds on this side: what to start, and what this side's own checks said."""

    checkpoint: UploadedCheckpoint = Field(description="As it was opened and verified here.")
    rules: tuple[RuleCheck, ...]
    answer: str
    allow_remote_code: tuple[str, ...] = Field(
        description="Python files that a loader may run, as set on this side."
    )
    grpo_command: str = Field(
        description="Made on this side, from the verified checkpoint and this side's settings."
    )
    signed_by: str | None = Field(
        description="The public key whose signature the hand-off carries; it is one of "
        "trusted_keys, if those are set."
    )
    claims: Claims


def _check_tokens(handoff: RLVRHandoff, seen: dict[str, object]) -> None:
    promised = handoff.tokens.model_dump()
    for name, value in seen.items():
        if promised[name] != value:
            raise HandoffRefused(
                f"{handoff.checkpoint.uri} has another {name} than was handed off: {value}, expected "
                f"{promised[name]}. Ask the DPO stage for a new hand-off."
            )


def accept(
    handoff_path: Path,
    where: Workplace,
    token_block: str | None = None,
    settings: IntakeConfig = IntakeConfig(),
) -> AcceptedHandoff:
    """Check a hand-off: signature, schema, place, files, revision, rules, and a fresh load that answers.

    What needs no load is checked before anything is loaded. Raises ``HandoffRefused``.
    """
    handoff = read_handoff(handoff_path)
    signed_by = check_signature(handoff, settings.trusted_keys)
    place = place_to_open(handoff.checkpoint, settings)
    if len(handoff.probe.prompt) > MAX_PROMPT_CHARACTERS:
        raise HandoffRefused(
            f"The hand-off asks a prompt of {len(handoff.probe.prompt)} characters; at most "
            f"{MAX_PROMPT_CHARACTERS} are asked."
        )
    work_dir = prepare_store(where.store.resolve()) / "intake" / handoff.fingerprint[:16]
    with exclusive(work_dir), opened(place, token_block, work_dir, settings.max_download_gib) as folder:
        check_before_load(folder, place, settings)
        answer = probe(folder, place, handoff.probe.prompt, bool(settings.allow_remote_code), work_dir, where)
        rules = check_rules(folder, place, answer)
        refuse_failed(place.uri, rules)
        _check_tokens(
            handoff,
            {
                "pad_token": answer.pad_token,
                "pad_token_id": answer.pad_token_id,
                "eos_token_ids": answer.eos_token_ids,
                "tokenizer_size": answer.tokenizer_size,
                "vocab_size": answer.vocab_size,
                "num_parameters": answer.num_parameters,
                "chat_template_sha256": template_sha256(folder),
            },
        )
    return AcceptedHandoff(
        checkpoint=place,
        rules=rules,
        answer=answer.answers[0],
        signed_by=signed_by,
        claims=_claims(handoff),
        allow_remote_code=settings.allow_remote_code,
        grpo_command=grpo_command(place, settings, _plain_name(handoff.name)),
    )


def _claims(handoff: RLVRHandoff) -> Claims:
    stated = handoff.model_dump(include=set(Claims.model_fields))
    return Claims(
        **stated,
        handoff_fingerprint=handoff.fingerprint,
        tokenizer_fingerprint=handoff.tokens.tokenizer_fingerprint,
    )


def _plain_name(name: str) -> str:
    """What names an experiment and is no option of the command."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name)[:80].strip("-.") or "dpo"


@task(
    name="verify hand-off",
    retries=3,
    retry_delay_seconds=[10, 30, 90],
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def verify_handoff(
    handoff_path: Path,
    place: Workplace,
    token_block: str | None = None,
    settings: IntakeConfig = IntakeConfig(),
) -> AcceptedHandoff:
    """Run ``accept`` as a task; retried because a download may break off."""
    accepted = accept(handoff_path, place, token_block, settings)
    get_run_logger().info(
        "Accepted %s, %s; it answers %r", accepted.checkpoint.uri, who_wrote(accepted), accepted.answer
    )
    return accepted


def who_wrote(accepted: AcceptedHandoff) -> str:
    """Say in words who wrote a hand-off."""
    if accepted.signed_by is None:
        return "unsigned: parent, data and metrics are the word of whoever wrote the file"
    return f"signed by {accepted.signed_by}, whose word parent, data and metrics are"
