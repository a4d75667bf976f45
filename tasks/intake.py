"""The receiving side of a hand-off: nothing in it is believed before it was checked here."""

from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from dpo_core.config import Section
from dpo_core.errors import HandoffRefused
from dpo_core.store import exclusive
from tasks.handoff.final_place import opened, probe
from tasks.handoff.rlvr_rules import check_rules, failed_rules, template_sha256
from tasks.handoff.schema import RLVRHandoff, RuleCheck, read_handoff
from tasks.launch.launcher import Launcher
from tasks.retry_policy import worth_a_retry
from tasks.store_root import prepare_store


class AcceptedHandoff(Section):
    """A hand-off that holds on this side: what to start, and what this side's own checks said."""

    handoff: RLVRHandoff
    rules: tuple[RuleCheck, ...]
    answer: str


def _check_tokens(handoff: RLVRHandoff, seen: dict[str, object]) -> None:
    promised = handoff.tokens.model_dump()
    for name, value in seen.items():
        if promised[name] != value:
            raise HandoffRefused(f"{handoff.checkpoint.uri} has another {name} than was handed off: {value}, expected "
                                 f"{promised[name]}. Ask the DPO stage for a new hand-off.")


def accept(handoff_path: Path, store_root: Path, launcher: Launcher, token_block: str | None = None) -> AcceptedHandoff:
    """Check a hand-off: schema, files, revision, rules, and a fresh load that answers. Raises ``HandoffRefused``."""
    handoff = read_handoff(handoff_path)
    uploaded, work_dir = handoff.checkpoint, prepare_store(store_root.resolve()) / "intake" / handoff.fingerprint[:16]
    with exclusive(work_dir), opened(uploaded, token_block, work_dir) as folder:
        answer = probe(folder, uploaded, handoff.probe.prompt, handoff.allow_remote_code, work_dir, launcher)
        rules = check_rules(folder, uploaded, answer)
        if failed := failed_rules(rules):
            raise HandoffRefused(f"{uploaded.uri} cannot start an RLVR run: {failed}. Ask the DPO stage for a new hand-off.")
        _check_tokens(handoff, {
            "pad_token_id": answer.pad_token_id, "eos_token_ids": answer.eos_token_ids, "vocab_size": answer.vocab_size,
            "num_parameters": answer.num_parameters, "chat_template_sha256": template_sha256(folder)})
    return AcceptedHandoff(handoff=handoff, rules=rules, answer=answer.answers[0])


@task(name="verify hand-off", retries=3, retry_delay_seconds=[10, 30, 90], retry_condition_fn=worth_a_retry,
      cache_policy=NO_CACHE, persist_result=False)
def verify_handoff(handoff_path: Path, store_root: Path, launcher: Launcher,
                   token_block: str | None = None) -> AcceptedHandoff:
    """``accept`` as a task; retried because a download may break off."""
    accepted = accept(handoff_path, store_root, launcher, token_block)
    get_run_logger().info("Accepted %s; it answers %r", accepted.handoff.checkpoint.uri, accepted.answer)
    return accepted
