"""``handoff.json``: what the DPO stage promises the RLVR run. Versioned; both sides read it through this file.

A version is raised when a reader of the old one would misunderstand the new one. A hand-off carries a fingerprint of
itself, which tells a damaged one; whoever changes it on purpose can make the fingerprint anew, so who wrote it is told by
a signature alone (``signature.py``).
"""

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from dpo_core.contract.benchmarks import Benchmarks
from dpo_core.contract.bounded_json import MAX_MARKS, bounded_json
from dpo_core.contract.errors import HandoffRefused
from dpo_core.contract.keep_best import BestStep
from dpo_core.contract.quantities import Stored
from dpo_core.contract.regular_file import NotRegular, TooLong, opened, read_at_most
from dpo_core.contract.section import Section
from dpo_core.contract.store import fingerprint
from tasks.gate.approval import Release
from tasks.publish.uploaded_checkpoint import UploadedCheckpoint

SCHEMA_VERSION: Final = 2  # 2: `release`
HANDOFF_FILE = "handoff.json"
MAX_HANDOFF_BYTES = 16 << 20


class RuleCheck(Section):
    """One thing that an RLVR trainer asserts of a checkpoint, and whether it holds."""

    rule: str
    passed: bool
    detail: str


class Tokens(Section):
    """Tokenizer and embedding of the checkpoint."""

    tokenizer_fingerprint: str = Field(description="Over the tokenizer's files and the chat template.")
    chat_template_sha256: str = Field(description="Of the template's text.")
    pad_token: str | None
    pad_token_id: Stored | None
    eos_token_ids: tuple[Stored, ...]
    tokenizer_size: Stored = Field(description="Tokens that the tokenizer can produce.")
    vocab_size: Stored = Field(description="Rows of the embedding.")
    num_parameters: Stored


class Parent(Section):
    """The SFT checkpoint that DPO started from."""

    source: str
    revision: str | None
    fingerprint: str
    tokenizer_fingerprint: str


class Probe(Section):
    """What the checkpoint answered, greedily, when it was loaded from its final place."""

    prompt: str
    answer: str


class Signature(Section):
    """Of the fingerprint, with Ed25519."""

    public_key: str = Field(description="ed25519: and the key in base64.")
    value: str = Field(description="In base64.")


class RLVRHandoff(Section):
    """Everything the RLVR run needs to know. Written last, when everything in it is true."""

    schema_version: Literal[2] = SCHEMA_VERSION
    name: str
    checkpoint: UploadedCheckpoint
    weights_fingerprint: str
    allow_remote_code: bool = False
    tokens: Tokens
    rules: tuple[RuleCheck, ...]
    parent: Parent
    data_fingerprint: str
    reference_fingerprint: str | None
    metrics_before: dict[str, float]
    metrics_after: dict[str, float]
    release: Release = Field(
        Release(), description="The gate's rules with their values, and who approved; empty without."
    )
    best: BestStep | None = Field(
        None, description="The step whose weights these are, and why; without one, the training's last."
    )
    benchmarks: Benchmarks | None = Field(
        None,
        description="Scores of tasks before and after, with their errors; without one, none were asked for.",
    )
    probe: Probe
    grpo_command: str = Field(
        description="Ready-to-run open-instruct GRPO command that starts from this checkpoint."
    )
    inputs_fingerprint: str = Field(
        description="Of what the hand-off was made from; the same inputs give the same."
    )
    fingerprint: str = Field("", description="Of all other fields but the signature.")
    signature: Signature | None = Field(None, description="Of whoever wrote it, if the stage has a key.")

    @model_serializer(mode="wrap")
    def _plain_as_ever(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a signature, best step or benchmarks the file is that of versions that knew none, so they can read it."""
        values = handler(self)
        return {
            name: value
            for name, value in values.items()
            if name not in ("signature", "best", "benchmarks") or value is not None
        }

    def own_fingerprint(self) -> str:
        """Return what ``fingerprint`` must be."""
        return fingerprint(self.model_dump(mode="json", exclude={"fingerprint", "signature"}))

    def sealed(self) -> "RLVRHandoff":
        """Return the same with its fingerprint filled in."""
        return self.model_copy(update={"fingerprint": self.own_fingerprint()})


def read_handoff(path: Path) -> RLVRHandoff:
    """Read and check a ``handoff.json``. Raises ``HandoffRefused`` for a file that is missing, foreign or edited."""
    try:
        with opened(path) as file:
            raw = bounded_json(read_at_most(file, MAX_HANDOFF_BYTES))
    except NotRegular:
        raise HandoffRefused(f"{path} is no regular file. Give the path of a handoff.json.") from None
    except TooLong:
        raise HandoffRefused(
            f"{path} is larger than {MAX_HANDOFF_BYTES >> 20} MiB or {MAX_MARKS:,} values, which no hand-off is."
        ) from None
    except OSError as error:
        raise HandoffRefused(
            f"{path} cannot be read: {error.strerror}. Give the path of a handoff.json."
        ) from error
    except (ValueError, RecursionError) as error:
        raise HandoffRefused(f"{path} is not JSON ({error}). Ask the DPO stage for it again.") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise HandoffRefused(
            f"{path} has schema_version {version}, expected {SCHEMA_VERSION}. Use the version of Pairline "
            "that wrote it, or have the stage run again with this one."
        )
    try:
        handoff = RLVRHandoff.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise HandoffRefused(
            f"{path} does not follow the schema: {where}: {first['msg']}. Ask the DPO stage for it again."
        ) from error
    try:
        expected = handoff.own_fingerprint()
    except UnicodeEncodeError:  # half a character, as "\\ud800" in JSON
        raise HandoffRefused(
            f"{path} holds text that no file can hold. Ask the DPO stage for it again."
        ) from None
    if handoff.fingerprint != expected:
        raise HandoffRefused(
            f"{path} was changed after it was written: fingerprint {handoff.fingerprint[:12]}, expected "
            f"{expected[:12]}. Ask the DPO stage for it again."
        )
    return handoff
