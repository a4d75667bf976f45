"""What jobs and results name each other by: pinned checkpoints, data, reference values. Content beside places."""

from pathlib import Path
from typing import Annotated, Any

from dpo_core.contract.amount import Amount
from dpo_core.contract.section import NotContent, NotContentAt, Section
from dpo_core.contract.source_config import PairRule

Location = Annotated[Path, NotContent()]
Label = Annotated[str, NotContent()]
FileHashes = Annotated[
    dict[str, str], NotContent()
]  # path relative to the value's own -> sha256; verified when reused


class CheckpointRef(Section):
    """A pinned local snapshot: safetensors weights, tokenizer, chat template; named by content."""

    path: Location
    fingerprint: str  # weights and architecture
    tokenizer_fingerprint: str  # tokenizer files and chat template
    source: Label  # what the user wrote: hub id, directory, package
    revision: Annotated[str | None, NotContent()] = None  # the commit, for a hub id
    files: FileHashes = {}
    allow_remote_code: bool = False
    tokenizer_source: Annotated[str | None, NotContent()] = (
        None  # where another than its own tokenizer is from
    )
    tokenizer_revision: Annotated[str | None, NotContent()] = None  # the commit of that, for a hub id


class DatasetRef(Section):
    """A tokenised mixture: folder with ``train/`` and ``held_out/``."""

    path: Location
    fingerprint: str
    files: FileHashes = {}


class ReferenceRef(Section):
    """Reference log-probabilities, row by row in the mixture's order."""

    path: Location
    fingerprint: str
    files: FileHashes = {}


class HeldOutSets(Section):
    """The named sets of ``evaluation.sets``: one mixture, all of it held out, whose sources they are."""

    data: DatasetRef
    reference: ReferenceRef | None = None  # None for an objective without one


class ResolvedSource(Section):
    """A data source whose content is pinned: files with hashes, or a Hub data set at a commit."""

    label: Label
    path: Annotated[Path | None, NotContent()] = None  # local file or directory
    hub_id: Annotated[str | None, NotContent()] = None
    commit: Annotated[str | None, NotContent()] = None
    content: str  # sha256 of the files, or hub id @ commit
    split: str = "train"
    subset: str | None = None
    amount: Amount = "1.0"
    columns: dict[str, str] = {}
    chat_template_kwargs: Annotated[dict[str, Any], NotContentAt({})] = {}
    pairs: Annotated[PairRule | None, NotContentAt(None)] = None


class ResolvedEvaluationSet(ResolvedSource):
    """An evaluation set whose content is pinned, and the columns that hold an instance's text."""

    fields: tuple[str, ...]
