"""The rows of a Hub data set at its commit; what the Hub and the library refuse, each in a sentence with its cause."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_core.contract.errors import DataError, PairlineError, RemoteError
from dpo_core.contract.refs import ResolvedSource
from dpo_core.data.columnar_rows import rows_of
from dpo_core.data.deep_json import is_deeper
from dpo_core.data.json_line import RawRow
from dpo_core.data.readers import read_rows
from dpo_core.data.row_files import JSON_ENDINGS

if TYPE_CHECKING:
    from datasets import DatasetBuilder

ROWS_PER_BATCH = 1024
REFUSED = (401, 403)  # statuses that trying again does not change
PASSING = (408, 409, 425, 429)  # those below 500 that it may change
CONVERTED = "refs/convert/parquet"  # where the Hub itself keeps the rows of a public set as Parquet
MAX_CAUSE_CHARACTERS = 700
DEEPEST = 64  # brackets of JSON that the library is given: it ends at some hundreds, and its process at some thousands
_OF_CONVERTED = re.compile(r"/(?P<subset>[^/]+)/(?P<partial>partial-)?[\w.-]+/\d{4}\.parquet$")


def hub_rows(source: ResolvedSource, cache_dir: Path) -> Iterator[RawRow]:
    """Yield every row. Raises ``DataError`` for a set that cannot be read, ``RemoteError`` when the Hub does not answer."""
    try:
        # The Hub's own builder reads its Parquet files; rows stay on disk as Arrow.
        builder = _builder(source, str(cache_dir / "hub"))
        _check_own_files(builder.config.data_files or {}, source)
        _check_converted((builder.config.data_files or {}).get(source.split, ()), source)
        deep = _deep_files(builder, source, cache_dir)
        dataset = None
        if not deep:
            builder.download_and_prepare()
            dataset = builder.as_dataset(split=source.split)
    except DataError:
        raise
    except Exception as error:  # the library raises nearly anything, and wraps what it was told
        raise _in_words(error, source) from error
    if dataset is None:
        for file in deep:
            yield from read_rows(file)
        return
    for table in dataset.with_format("arrow").iter(ROWS_PER_BATCH):
        for batch in table.to_batches():
            yield from map(RawRow, rows_of(batch))


def _deep_files(builder: "DatasetBuilder", source: ResolvedSource, cache_dir: Path) -> list[Path]:
    """The split's files, if they are JSON and one holds a value nested so deeply that the library would end on it: they
    are read as files of this machine are. None otherwise."""
    import datasets

    files = [str(file) for file in (builder.config.data_files or {}).get(source.split, ())]
    if not files or not all(file.endswith(JSON_ENDINGS) for file in files):
        return []
    config = datasets.DownloadConfig(cache_dir=str(cache_dir / "hub" / "downloads"), use_etag=False)
    manager = datasets.DownloadManager(dataset_name=builder.dataset_name, download_config=config)
    found = [Path(file) for file in manager.download_and_extract(files)]
    return found if any(is_deeper(file, DEEPEST) for file in found) else []


def _builder(source: ResolvedSource, cache_dir: str) -> "DatasetBuilder":
    """What makes the rows. Among the Hub's own Parquet files a subset is a folder, and no README.md tells of it."""
    import datasets

    asked: dict[str, Any] = {"path": source.hub_id, "revision": source.commit, "cache_dir": cache_dir}
    try:
        return datasets.load_dataset_builder(**asked, name=source.subset)
    except ValueError as error:
        if source.subset is None or "BuilderConfig" not in str(error):
            raise
        try:
            return datasets.load_dataset_builder(**asked, data_dir=source.subset)
        except Exception:
            raise error from None


def _check_converted(files: Iterable[str], source: ResolvedSource) -> None:
    """Raise ``DataError`` for the Hub's own Parquet files if they are of several subsets, of which the library makes one set
    without a word, or not all that there are."""
    names = [str(file) for file in files]
    found = [match for name in names if (match := _OF_CONVERTED.search(name))]
    if len(found) < len(names):
        return
    subsets = sorted({match["subset"] for match in found})
    if len(subsets) > 1:
        raise DataError(
            f"The Hub data set {source.hub_id} holds the subsets {', '.join(subsets)} at this revision, one in each folder. "
            "Name one with `subset`."
        )
    if any(match["partial"] for match in found):
        raise DataError(
            f"The Hub has converted only the first part of the data set {source.hub_id} to Parquet (its files lie in "
            f"partial-{source.split}). Download the set's own files and name their directory."
        )


def _check_own_files(data_files: Mapping[str, Iterable[str]], source: ResolvedSource) -> None:
    """Raise ``DataError`` if rows would come from elsewhere.

    A README.md lists a set's files by patterns, and the library follows them anywhere: to this machine's own files, to
    private sets that the token may read, to any address.
    """
    own = re.compile(
        rf"hf://datasets/{re.escape(str(source.hub_id))}(@[^/]+)?/|{re.escape(str(Path(str(source.hub_id)).resolve()))}/",
        re.IGNORECASE,
    )
    for path in itertools.chain.from_iterable(data_files.values()):
        where = path.rpartition("::")[2]  # "zip://rows.csv::<where the archive lies>"
        if not own.match(where) or ".." in where.split("/"):
            raise DataError(
                f"The Hub data set {source.hub_id} names {where} in its README.md as one of its files, which it is not. "
                "It is not read: use another set, or download it and name the files that you want."
            )


def _in_words(error: Exception, source: ResolvedSource) -> PairlineError:
    """What the library's error means and what to do about it."""
    import datasets
    from huggingface_hub.errors import (
        GatedRepoError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    named = f"{source.hub_id} (split `{source.split}`" + (
        f", subset `{source.subset}`)" if source.subset else ")"
    )
    causes = _causes(error)
    answers = {status: cause for cause in causes if (status := _status(cause)) is not None}
    if refused := [cause for status, cause in answers.items() if status in REFUSED]:
        return DataError(
            f"The Hub does not let this token read the data set {named}: {_said(refused[-1])}. Ask for access on its page, "
            "or give a token that has it (HF_TOKEN)."
        )
    if _any(causes, datasets.exceptions.DatasetNotFoundError, RepositoryNotFoundError, GatedRepoError):
        return DataError(
            f"The Hub data set {named} does not exist, or the token may not read it: {_said(error)}"
        )
    is_passing = any(status in PASSING or status >= 500 for status in answers)
    if is_passing or (
        not answers and _any(causes, ConnectionError, TimeoutError, HTTPError, LocalEntryNotFoundError)
    ):
        return RemoteError(
            f"The Hub did not answer for {named}: {_said(error)}. Check the network and start again."
        )
    if answers:
        status, cause = list(answers.items())[-1]
        return DataError(
            f"The Hub refused a part of the data set {named} ({status}): {_said(cause)}. A file that its commit "
            "names may be gone, or what was downloaded of it does not fit: look at the set's page, and delete the set from "
            "the Hub's cache (HF_HOME) before you start again."
        )
    return DataError(f"The Hub data set {named} cannot be loaded: {_why(error, causes)}")


def _why(error: Exception, causes: list[BaseException]) -> str:
    from datasets import exceptions

    text = _said(error)
    if "scripts are no longer supported" in text:
        return (
            f"its rows are made by a Python script ({text.rpartition(' ')[2]}), which nothing here runs. Set `revision: "
            f"{CONVERTED}`, where the Hub keeps the rows of most such sets as Parquet, or name a set that holds files."
        )
    if _any(causes, exceptions.NonMatchingSplitsSizesError, exceptions.ExpectedMoreSplitsError):
        return (
            "the numbers of rows that its README.md promises (dataset_info) are not those of its files. Either the "
            f"README.md is stale or files are missing. Set `revision: {CONVERTED}`, where the Hub counts for itself, have "
            f"the README.md corrected, or download the files and name their directory. {text}"
        )
    other_columns = any("column names don't match" in str(cause) for cause in causes)
    if other_columns or _any(causes, exceptions.DatasetGenerationCastError):
        return (
            "its files do not have the same columns, and one table is made of them. Name the subset or split of the files "
            "that belong together, or download them and name their directory: rows of local files may differ. "
            f"{_said(causes[-1])}"
        )
    if _any(causes, exceptions.DatasetGenerationError):
        return (
            "its rows do not fit into one table: a column has values of different kinds, or a file is damaged. Download "
            f"the files and name their directory: rows of local files may differ. The cause: {_said(causes[-1])}"
        )
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what it came of, outermost first."""
    causes: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in causes:
        causes.append(found)
        found = found.__cause__ or found.__context__
    return causes


def _status(cause: BaseException) -> int | None:
    """The status of the Hub's answer that an error came of."""
    status = getattr(getattr(cause, "response", None), "status_code", None)
    return status if type(status) is int else None


def _any(causes: list[BaseException], *kinds: type[BaseException]) -> bool:
    return any(isinstance(cause, kinds) for cause in causes)


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= MAX_CAUSE_CHARACTERS else text[:MAX_CAUSE_CHARACTERS] + " ..."
