"""What an RLVR trainer asserts of the checkpoint it starts from (open-instruct's GRPO and its tokenizer set-up).

Each rule looks at the files and at what a stock load of them reported, and says why it fails.
"""

import hashlib
import json
import re
from pathlib import Path

from dpo_core.contract.jobs import AnswerResult
from tasks.checkpoint.files import (
    CONFIG,
    GENERATION_CONFIG,
    PICKLE_SUFFIXES,
    TOKENIZER_CONFIG,
    WEIGHTS,
    WEIGHTS_INDEX,
)
from tasks.checkpoint.own_files import read_json_file, read_text_file
from tasks.handoff.schema import RuleCheck
from tasks.publish.directory import content_revision
from tasks.publish.uploaded_checkpoint import UploadedCheckpoint

REQUIRED_FILES = (CONFIG, GENERATION_CONFIG, "tokenizer.json", TOKENIZER_CONFIG)


def template_text(folder: Path) -> str:
    """Return the chat template's text in a checkpoint folder, "" if it has none. Raises ``CheckpointError``."""
    if (folder / "chat_template.jinja").is_file():
        return read_text_file(folder / "chat_template.jinja")
    if not (folder / TOKENIZER_CONFIG).is_file():
        return ""
    template = read_json_file(folder / TOKENIZER_CONFIG).get("chat_template") or ""
    return template if isinstance(template, str) else json.dumps(template, sort_keys=True)


def template_sha256(folder: Path) -> str:
    """Return SHA-256 (hex) of the template's text."""
    return hashlib.sha256(template_text(folder).encode()).hexdigest()


def check_names(uploaded: UploadedCheckpoint) -> list[RuleCheck]:
    """Return the rules that are seen by the names of the files and the revision, before anything is fetched."""
    files = uploaded.files
    missing = [name for name in REQUIRED_FILES if name not in files]
    if WEIGHTS not in files and WEIGHTS_INDEX not in files:
        missing.append(f"{WEIGHTS} or {WEIGHTS_INDEX}")
    foreign = [name for name in files if name.endswith(PICKLE_SUFFIXES) or name.startswith("adapter_")]
    return [
        RuleCheck(
            rule="required_files",
            passed=not missing,
            detail=f"missing: {', '.join(missing)}"
            if missing
            else f"{len(files)} files, all that are needed",
        ),
        RuleCheck(
            rule="full_weights_only",
            passed=not foreign,
            detail=f"not wanted: {', '.join(foreign)}"
            if foreign
            else "merged safetensors, no adapter to be applied, no pickle",
        ),
        _check_revision(uploaded),
    ]


def check_template(folder: Path) -> RuleCheck:
    """Return the rule that is seen by the files, before they are loaded."""
    present = bool(template_text(folder))
    return RuleCheck(
        rule="chat_template",
        passed=present,
        detail="present" if present else "the checkpoint carries no chat template",
    )


def _check_pad(folder: Path, answer: AnswerResult) -> list[RuleCheck]:
    pad, pad_id = answer.pad_token, answer.pad_token_id
    rendered = sum(ids.count(pad_id) for ids in answer.prompts_ids if pad_id is not None)
    in_text = bool(pad and pad in template_text(folder))
    return [
        RuleCheck(rule="pad_token_exists", passed=pad_id is not None, detail=f"{pad} = {pad_id}"),
        RuleCheck(
            rule="pad_differs_from_eos",
            passed=pad_id is not None and pad_id not in answer.eos_token_ids,
            detail=f"pad {pad_id}, eos {list(answer.eos_token_ids)}",
        ),
        RuleCheck(
            rule="pad_is_no_template_token",
            passed=not rendered and not in_text,
            detail=f"the template writes {pad}, and pads are stripped from prompts"
            if rendered or in_text
            else "the chat template never writes it",
        ),
    ]


def _check_ids(folder: Path, answer: AnswerResult) -> list[RuleCheck]:
    ids = {
        name: read_json_file(folder / name).get("pad_token_id")
        for name in (CONFIG, GENERATION_CONFIG)
        if (folder / name).is_file()
    }
    wrong = {name: value for name, value in ids.items() if value != answer.pad_token_id}
    where = ", ".join(f"{name} has {value}" for name, value in wrong.items()) or "everywhere"
    covered = answer.vocab_size >= answer.tokenizer_size
    return [
        RuleCheck(
            rule="pad_ids_agree", passed=not wrong, detail=f"tokenizer: {answer.pad_token_id}, {where}"
        ),
        RuleCheck(
            rule="vocabulary_covers_tokenizer",
            passed=covered,
            detail=f"{answer.vocab_size} embedding rows, {answer.tokenizer_size} tokens",
        ),
    ]


def _check_revision(uploaded: UploadedCheckpoint) -> RuleCheck:
    if uploaded.kind == "hub":
        passed, what = bool(re.fullmatch(r"[0-9a-f]{40}", uploaded.revision)), "a commit"
    else:
        passed, what = uploaded.revision == content_revision(uploaded.files), "a fingerprint of the files"
    detail = f"{uploaded.revision} is {'' if passed else 'not '}{what}"
    return RuleCheck(rule="revision_is_immutable", passed=passed, detail=detail)


def check_before_training(folder: Path, files: dict[str, str], loaded: AnswerResult) -> tuple[RuleCheck, ...]:
    """Check the rules that can be told of an export without weights: before a run trains what could not be handed off.

    ``folder``, ``files``: as it was rehearsed; ``loaded``: what the load of that reported.
    """
    missing = [name for name in REQUIRED_FILES if name not in files]
    return (
        RuleCheck(rule="required_files", passed=not missing, detail=f"missing: {', '.join(missing)}"),
        check_template(folder),
        *_check_pad(folder, loaded),
        *_check_ids(folder, loaded),
    )


def check_rules(folder: Path, uploaded: UploadedCheckpoint, answer: AnswerResult) -> tuple[RuleCheck, ...]:
    """Return every rule with pass or fail. ``folder``: the checkpoint as it was loaded; ``answer``: what the load
    reported.
    """
    answered = bool(answer.answers) and all(answer.answers)
    *of_files, of_revision = check_names(uploaded)
    return (
        *of_files,
        check_template(folder),
        *_check_pad(folder, answer),
        *_check_ids(folder, answer),
        of_revision,
        RuleCheck(
            rule="answers_a_prompt",
            passed=answered,
            detail=repr(answer.answers[0][:80]) if answered else "it answered the probe prompt with nothing",
        ),
    )


def failed_rules(rules: tuple[RuleCheck, ...]) -> str:
    """Return the failing rules as one text, "" if all hold."""
    return "; ".join(f"{check.rule} ({check.detail})" for check in rules if not check.passed)
