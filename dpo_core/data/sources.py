"""A resolved source -> rows on disk with random access by row number.

Each row is kept as its JSON text in one Arrow file, memory-mapped: rows need not agree on columns or types, and memory
does not grow with their number. The files are made once per content and shared by all runs of a store.
"""

import contextlib
import json
import mmap
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dpo_core.contract.errors import DataError, StoreError
from dpo_core.contract.refs import ResolvedEvaluationSet, ResolvedSource
from dpo_core.contract.source_config import OUR_COLUMNS
from dpo_core.contract.store import ASIDE, exclusive, fingerprint, new_directory, write_json
from dpo_core.data.formats import READ_COLUMNS
from dpo_core.data.half_characters import has_half
from dpo_core.data.hub_rows import hub_rows
from dpo_core.data.json_line import RawRow
from dpo_core.data.ranked_answers import RANKED_COLUMNS
from dpo_core.data.read_limits import bounded_texts, reading
from dpo_core.data.readers import read_rows
from dpo_core.data.row_files import JSON_ENDINGS, files_of

ROWS_FILE, ABOUT_FILE = "rows.arrow", "about.json"
ROWS_PER_BATCH = 512
MAX_COLUMNS_KEPT = 200
LAYOUT = (
    6  # raised when the stored form of rows, or which of them are stored, changes; FetchJob.VERSION with it
)
_SCHEMA = pa.schema([("row", pa.large_string())])


@dataclass(frozen=True)
class RowStore:
    """Raw rows of one source. ``store[i]`` is the value of row i (0-based, in the source's order)."""

    folder: Path
    num_rows: int
    columns: tuple[str, ...]  # every column that any row has, in order of appearance

    @classmethod
    def open(cls, folder: Path) -> "RowStore":
        """Open the rows in ``folder``. Raises ``StoreError`` if they are damaged."""
        try:
            about = json.loads((folder / ABOUT_FILE).read_bytes())
            return cls(folder, about["num_rows"], tuple(about["columns"]))
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(
                f"{folder} holds no readable rows ({error}).", "Delete it to have it made again."
            ) from error

    @cached_property
    def _map(self) -> mmap.mmap:
        with (self.folder / ROWS_FILE).open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @cached_property
    def _reader(self) -> pa.ipc.RecordBatchFileReader:
        return pa.ipc.open_file(pa.py_buffer(self._map))

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> Any:
        return self.values(np.array([index]))[0]

    def values(self, rows: np.ndarray) -> list[Any]:
        """Return the values of ascending row numbers, int64 [n]."""
        batches, first = np.unique(rows // ROWS_PER_BATCH, return_index=True)
        ends = [*first[1:].tolist(), len(rows)]
        texts: list[str] = []
        for batch, start, end in zip(batches.tolist(), first.tolist(), ends, strict=True):
            texts += (
                self._reader.get_batch(batch)
                .column(0)
                .take(pa.array(rows[start:end] % ROWS_PER_BATCH))
                .to_pylist()
            )
        self._map.madvise(mmap.MADV_DONTNEED)  # else every process would come to hold the whole file
        try:
            return list(map(json.loads, texts))
        except RecursionError:
            return list(map(_value, texts))


@contextlib.contextmanager
def loading(sources: Sequence[ResolvedSource], cache_dir: Path) -> Iterator[Callable[[], Iterator[RowStore]]]:
    """Read what ``cache_dir`` does not keep yet, long sets in a process of its own while the block goes on.

    Yields what gives the rows of each source, in order. That raises ``DataError`` for rows that cannot be read, for an empty
    set and for an unknown column; ``RemoteError`` when the Hub does not answer.
    """
    folders = [_folder(source, cache_dir) for source in sources]
    missing = [number for number, folder in enumerate(folders) if not (folder / ABOUT_FILE).is_file()]
    with reading([sources[number] for number in missing], partial(_keep, cache_dir)) as finish:

        def stores() -> Iterator[RowStore]:
            for number, (source, folder) in enumerate(zip(sources, folders, strict=True)):
                if number in missing:
                    finish(missing.index(number))
                rows = RowStore.open(folder)
                _check_columns(source, rows)
                yield rows

        yield stores


def load_source(source: ResolvedSource, cache_dir: Path) -> RowStore:
    """Return rows of ``source``, read once and kept below ``cache_dir``. Raises like ``loading``."""
    with loading([source], cache_dir) as stores:
        return next(stores())


def _folder(source: ResolvedSource, cache_dir: Path) -> Path:
    """Where a source's rows are kept."""
    named = sorted(_named_columns(source) - READ_COLUMNS) if _is_columnar(source) else []
    key = fingerprint(
        {"layout": LAYOUT, "content": source.content, "split": source.split, "subset": source.subset}
        | ({"columns": named} if named else {})
    )
    return cache_dir / "rows" / key[:32]


def _keep(cache_dir: Path, source: ResolvedSource) -> None:
    """Read a source, unless somebody else does so at the time."""
    folder = _folder(source, cache_dir)
    with exclusive(folder.with_name(f".{folder.name}.lock"), wait_seconds=3600):
        if not (folder / ABOUT_FILE).is_file():
            _forget_unfinished(folder)
            _store(source, folder, cache_dir)
            pa.default_memory_pool().release_unused()  # the next set's limit counts what is kept


def _forget_unfinished(folder: Path) -> None:
    """Delete what readers that were killed left of a set. For the holder of its lock."""
    for aside in folder.parent.glob(f".{folder.name}.*{ASIDE}"):
        shutil.rmtree(aside, ignore_errors=True)


def _named_columns(source: ResolvedSource) -> frozenset[str]:
    """The set's columns that a recipe names, whole and to their first dot."""
    fields = source.fields if isinstance(source, ResolvedEvaluationSet) else ()
    names = {*source.columns.values(), *fields}
    return frozenset(names | {name.partition(".")[0] for name in names})


def _is_columnar(source: ResolvedSource) -> bool:
    """Whether it may hold files of which columns are read one by one."""
    return source.path is not None and not source.path.name.endswith(JSON_ENDINGS)


def _check_columns(source: ResolvedSource, rows: RowStore) -> None:
    for ours, theirs in source.columns.items():
        if ours not in OUR_COLUMNS:
            raise DataError(
                f"`columns` of {source.label} names `{ours}`, which is none of ours: "
                f"{', '.join(OUR_COLUMNS)}. The map goes from our column to theirs, e.g. {{chosen: winner}}."
            )
        if theirs not in rows.columns and not (
            ours in RANKED_COLUMNS and theirs.partition(".")[0] in rows.columns
        ):
            raise DataError(
                f"{source.label} has no column `{theirs}` (named in `columns` for `{ours}`). Its columns "
                f"are: {', '.join(rows.columns)}."
            )


def _rows_of(source: ResolvedSource, cache_dir: Path) -> Iterator[RawRow]:
    if source.path is not None:
        if source.subset is not None:
            raise DataError(
                f"{source.label} is a local path and has no subset `{source.subset}`. Remove `subset`, or "
                "name the directory of that subset."
            )
        for file in files_of(source.path, source.split):
            yield from _objects(file, read_rows(file, READ_COLUMNS | _named_columns(source)))
        return
    if source.hub_id is None:
        raise DataError(f"{source.label} names neither a local path nor a Hub data set.")
    yield from hub_rows(source, cache_dir)


def _objects(file: Path, rows: Iterator[RawRow]) -> Iterator[RawRow]:
    """Pass rows on; a file whose first row is no object holds something else than rows. One that was passed by as too long
    or too deep (None) says nothing of the others."""
    is_told = False
    for row in rows:
        if not is_told and row.value is not None and not isinstance(row.value, dict):
            raise DataError(
                f"{file} holds no rows: its first value is {_kind(row.value)}, expected an object such as "
                '{"chosen": ..., "rejected": ...}.'
            )
        is_told = is_told or row.value is not None
        yield row


def _kind(value: Any) -> str:
    kinds = {
        list: "a list",
        str: "a text",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return kinds.get(type(value), type(value).__name__)


def _store(source: ResolvedSource, folder: Path, cache_dir: Path) -> None:
    """Write a source's rows as JSON text into ``folder``, atomically."""
    columns: dict[str, None] = {}
    with new_directory(folder) as aside:
        count = 0
        with pa.OSFile(str(aside / ROWS_FILE), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            texts: list[str] = []
            for text in bounded_texts(_texts(_rows_of(source, cache_dir), columns), source):
                texts.append(text)
                count += 1
                if len(texts) == ROWS_PER_BATCH:
                    writer.write_batch(pa.record_batch([pa.array(texts, pa.large_string())], schema=_SCHEMA))
                    texts = []
            if texts:
                writer.write_batch(pa.record_batch([pa.array(texts, pa.large_string())], schema=_SCHEMA))
        if count == 0:
            raise DataError(f"{source.label} is empty: it holds no row. Check `source` and `split`.")
        write_json(aside / ABOUT_FILE, {"num_rows": count, "columns": list(columns)})


def _texts(rows: Iterator[RawRow], columns: dict[str, None]) -> Iterator[str]:
    """Yield each row's JSON text, and note its columns."""
    for row in rows:
        if isinstance(row.value, dict) and len(columns) < MAX_COLUMNS_KEPT:
            columns.update(dict.fromkeys((*row.value, *row.unread)))
        yield _json_text(row.value) if row.text is None else row.text


def _value(text: str) -> Any:
    """A row's value; None, which is dropped as no preference row, for one that is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        return None


def _json_text(row: Any) -> str:
    try:
        text = json.dumps(row, ensure_ascii=False, default=_plain)
    except RecursionError:
        return "null"
    # Half a character (legal in JSON as \ud83d) has no form in UTF-8, and stays an escape.
    return json.dumps(row, default=_plain) if has_half(text) else text


def _plain(value: Any) -> Any:
    """Columnar files hold dates, bytes, decimals; none is part of a preference, so their text will do."""
    return value.tolist() if isinstance(value, np.ndarray) else str(value)
