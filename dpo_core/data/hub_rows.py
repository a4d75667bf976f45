"""The rows of a Hub data set at its commit; what the Hub and the library refuse, each in a sentence with its cause."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpo_core.contract.errors import DataError, PairlineError, RemoteError
from dpo_core.contract.refs import ResolvedSource
from dpo_core.data.columnar_rows import rows_of

ROWS_PER_BATCH = 1024
REFUSED = (401, 403)  # statuses that trying again does not change
CONVERTED = "refs/convert/parquet"  # where the Hub itself keeps the rows of a public set as Parquet
MAX_CAUSE_CHARACTERS = 700


def hub_rows(source: ResolvedSource, cache_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield every row. Raises ``DataError`` for a set that cannot be read, ``RemoteError`` when the Hub does not answer."""
    import datasets

    try:
        # The Hub's own builder reads its Parquet files; rows stay on disk as Arrow.
        dataset = datasets.load_dataset(
            source.hub_id,
            name=source.subset,
            split=source.split,
            revision=source.commit,
            cache_dir=str(cache_dir / "hub"),
        )
    except Exception as error:  # the library raises nearly anything, and wraps what it was told
        raise _in_words(error, source) from error
    for table in dataset.with_format("arrow").iter(ROWS_PER_BATCH):
        for batch in table.to_batches():
            yield from rows_of(batch)


def _in_words(error: Exception, source: ResolvedSource) -> PairlineError:
    """What the library's error means and what to do about it."""
    import datasets
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    named = f"{source.hub_id} (split `{source.split}`" + (
        f", subset `{source.subset}`)" if source.subset else ")"
    )
    causes = _causes(error)
    statuses = [getattr(getattr(cause, "response", None), "status_code", None) for cause in causes]
    if any(status in REFUSED for status in statuses):
        return DataError(
            f"The Hub does not let this token read the data set {named}: {_said(causes[-1])}. Ask for access on its page, "
            "or give a token that has it (HF_TOKEN)."
        )
    if _any(causes, datasets.exceptions.DatasetNotFoundError, RepositoryNotFoundError, GatedRepoError):
        return DataError(
            f"The Hub data set {named} does not exist, or the token may not read it: {_said(error)}"
        )
    if _any(causes, ConnectionError, TimeoutError, HfHubHTTPError):
        return RemoteError(
            f"The Hub did not answer for {named}: {_said(error)}. Check the network and start again."
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


def _any(causes: list[BaseException], *kinds: type[BaseException]) -> bool:
    return any(isinstance(cause, kinds) for cause in causes)


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= MAX_CAUSE_CHARACTERS else text[:MAX_CAUSE_CHARACTERS] + " ..."
