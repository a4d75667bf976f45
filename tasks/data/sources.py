"""Pins the content of data sources: files by their hashes, Hub data sets by a commit. Torch-free."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi

from dpo_core.contract.errors import DataError, from_os_error
from dpo_core.contract.quality_config import EvaluationSet
from dpo_core.contract.refs import ResolvedEvaluationSet, ResolvedSource
from dpo_core.contract.source_config import DataSource
from dpo_core.contract.store import fingerprint, hash_files, sha256_file
from tasks.hub.commit import commit_of
from tasks.hub.errors import from_hub_error

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
DATA_SUFFIXES = (".jsonl", ".json", ".gz", ".parquet", ".arrow", ".csv", ".txt")


def resolve_sources(sources: Sequence[DataSource]) -> tuple[ResolvedSource, ...]:
    """Return each source with its content pinned. Raises ``DataError``, ``ConfigError``, ``RemoteError``."""
    return tuple(resolve_source(source) for source in sources)


def resolve_source(source: DataSource) -> ResolvedSource:
    """Return where a source lies: an existing path is local, whatever else it could be; ``org/name`` is a Hub data set;
    the rest is refused.
    """
    path = Path(source.source).expanduser()
    if path.exists():
        return _resolved(source, content=_local_content(path), path=path.resolve())
    check_sources((source,))
    commit = _commit(source)
    return _resolved(source, content=f"{source.source}@{commit}", hub_id=source.source, commit=commit)


def resolve_evaluation_sets(sets: tuple[EvaluationSet, ...]) -> tuple[ResolvedEvaluationSet, ...]:
    """Look sets up as ``resolve_sources`` does; a local file has only the split `train`, whatever is asked for."""
    resolved = []
    for one in sets:
        path = Path(one.source).expanduser()
        split = "train" if path.is_file() else one.split
        source = resolve_source(
            DataSource(source=one.source, split=split, revision=one.revision, subset=one.subset)
        )
        resolved.append(ResolvedEvaluationSet(**source.model_dump(), fields=one.fields))
    return tuple(resolved)


def check_sources(
    sources: Sequence[DataSource] | Sequence[EvaluationSet], setting: str = "data.sources"
) -> None:
    """Raise ``DataError`` for a source that cannot be meant: cheap, so that it comes before a checkpoint is fetched."""
    for source in sources:
        if not Path(source.source).expanduser().exists() and not is_hub_id(source.source):
            raise DataError(
                f"{setting}: {source.source} does not exist (looked in {Path.cwd()}). Give an existing "
                "file or directory, or org/name for a Hub data set."
            )


def is_hub_id(text: str) -> bool:
    """Return whether a source that is no existing path can be meant as a Hub data set."""
    return bool(HUB_ID.fullmatch(text)) and not text.endswith(DATA_SUFFIXES)


def _resolved(
    source: DataSource,
    content: str,
    path: Path | None = None,
    hub_id: str | None = None,
    commit: str | None = None,
) -> ResolvedSource:
    return ResolvedSource(
        label=source.source,
        split=source.split,
        subset=source.subset,
        amount=source.amount,
        columns=source.columns,
        chat_template_kwargs=source.chat_template_kwargs,
        pairs=source.pairs,
        content=content,
        path=path,
        hub_id=hub_id,
        commit=commit,
    )


def _local_content(path: Path) -> str:
    try:
        if path.is_file():
            return sha256_file(path)
        files = hash_files(path)
    except OSError as error:
        raise from_os_error(error, f"reading {path}") from error
    if not files:
        raise DataError(
            f"data.sources: the directory {path} is empty. Give one with .jsonl, .json, .jsonl.gz or .parquet "
            "files."
        )
    return fingerprint(files)


def _commit(source: DataSource) -> str:
    if source.revision and COMMIT.fullmatch(source.revision):
        return source.revision
    doing = f"looking up the data set {source.source}{'@' + source.revision if source.revision else ''}"
    try:
        info = HfApi().dataset_info(source.source, revision=source.revision, timeout=30)
    except Exception as error:
        raise from_hub_error(error, doing, os.environ.get("HF_TOKEN")) from None
    return commit_of(info, doing)
