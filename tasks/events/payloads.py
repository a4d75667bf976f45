"""What one stage of post-training tells the next: the payloads of its events, versioned.

    event                    emitted by                           starts
    ``sft.checkpoint.ready`` an SFT job (`pairline emit-sft`)     dpo-stage/after-sft
    ``dpo.checkpoint.ready`` dpo_stage, after the hand-off        rlvr-intake/after-dpo

The id of an event is made of the checkpoint's content, so telling twice of one checkpoint is one event. A version is
raised when a reader of the old payload would misunderstand the new one.
"""

from pathlib import Path
from typing import ClassVar, Literal
from uuid import NAMESPACE_URL, UUID, uuid5

from pydantic import Field

from dpo_core.contract.section import Section
from tasks.handoff.schema import RLVRHandoff

NAMESPACE = uuid5(NAMESPACE_URL, "https://pairline/events")
CHAIN_DIGITS = 12
MAX_ATTEMPT = 1_000_000


def chain_tag(sft_fingerprint: str) -> str:
    """Return the tag that all runs of one chain carry: the chain is named by the SFT checkpoint it began with."""
    return f"chain:{sft_fingerprint[:CHAIN_DIGITS]}"


class CheckpointReady(Section):
    """What both payloads share."""

    EVENT: ClassVar[str]

    schema_version: Literal[1] = Field(1, description="Version of this payload; a reader refuses another.")
    name: str = Field(description="Name of the run family that made the checkpoint.")
    weights_fingerprint: str = Field(
        min_length=16, description="Over the weights' contents and the architecture."
    )
    chain: str = Field(
        pattern=r"^chain:[\w-]{1,64}$",
        description="Tag of all runs that this checkpoint's SFT checkpoint led to.",
    )
    flow_run_id: UUID | None = Field(None, description="The Prefect run that made it, if one did.")
    attempt: int = Field(
        0, ge=0, le=MAX_ATTEMPT, description="Raised to have the same checkpoint processed again on purpose."
    )

    def identity(self) -> tuple[str, ...]:
        """Return what tells this checkpoint from another."""
        raise NotImplementedError

    @property
    def event_id(self) -> UUID:
        """The same for the same content, whoever tells of it and however often."""
        return uuid5(
            NAMESPACE, "/".join((self.EVENT, str(self.schema_version), *self.identity(), str(self.attempt)))
        )

    @property
    def event_tag(self) -> str:
        """The tag of the run that this event started."""
        return f"event:{self.event_id}"

    @property
    def resource(self) -> dict[str, str]:
        """The event's resource, which triggers match."""
        return {
            "prefect.resource.id": f"pairline.checkpoint.{self.weights_fingerprint[:16]}",
            "prefect.resource.name": self.name,
            "pairline.name": self.name,
            "pairline.chain": self.chain,
        }


class SftCheckpointReady(CheckpointReady):
    """An SFT checkpoint that was verified where it lies. Payload of ``sft.checkpoint.ready``, version 1."""

    EVENT: ClassVar[str] = "sft.checkpoint.ready"

    source: str = Field(description="Hub id (org/name) or an absolute directory that the worker can read.")
    revision: str | None = Field(None, description="Hub commit; a directory is pinned by its fingerprints.")
    tokenizer_fingerprint: str = Field(
        min_length=16, description="Over the tokenizer's files and the chat template."
    )
    recipe: str | None = Field(
        None,
        max_length=200,
        description="File name of the stage's recipe for this checkpoint, in "
        "the folder that the deployment takes recipes from; empty: the deployment's own.",
    )

    def identity(self) -> tuple[str, ...]:
        return (self.weights_fingerprint, self.tokenizer_fingerprint)


class DpoCheckpointReady(CheckpointReady):
    """A published checkpoint whose hand-off was verified. Payload of ``dpo.checkpoint.ready``, version 1."""

    EVENT: ClassVar[str] = "dpo.checkpoint.ready"

    handoff: str = Field(description="file:// address of the handoff.json.")
    handoff_fingerprint: str = Field(min_length=16, description="The hand-off's own fingerprint.")
    uri: str = Field(description="Where the checkpoint is: hf://org/name@commit or file:///absolute/path.")
    revision: str = Field(description="Its immutable revision.")

    def identity(self) -> tuple[str, ...]:
        return (self.handoff_fingerprint,)

    @classmethod
    def of(cls, handoff: RLVRHandoff, path: Path, flow_run_id: UUID | None) -> "DpoCheckpointReady":
        """Return the payload for a hand-off that was written to ``path``."""
        return cls(
            name=handoff.name,
            weights_fingerprint=handoff.weights_fingerprint,
            flow_run_id=flow_run_id,
            chain=chain_tag(handoff.parent.fingerprint),
            handoff=path.resolve().as_uri(),
            handoff_fingerprint=handoff.fingerprint,
            uri=handoff.checkpoint.uri,
            revision=handoff.checkpoint.revision,
        )
