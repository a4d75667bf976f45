"""Raw rows of local files, one at a time: JSON (``json_rows``), gzip, Parquet, Arrow. Memory is flat in the rows.

Rows are Python values and need not share columns or types. A file is read to its last byte: one that cannot be, or that
holds something behind its rows, is a ``DataError`` that says where it breaks.
"""

import contextlib
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from dpo_core.contract.errors import DataError
from dpo_core.data.columnar_rows import BYTES_AT_ONCE, rows_of
from dpo_core.data.json_line import RawRow
from dpo_core.data.json_rows import json_rows

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ARROW_MAGIC, PARQUET_MAGIC = b"ARROW1", b"PAR1"
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
ROWS_AT_ONCE = 1024
AGAIN = "Download or write it again."

_SEVERAL = (
    "{path} is more than one {kind} file, or something stands behind its rows. Put files side by side into a "
    "directory, or write their rows into one."
)

_BEGINNINGS = {
    b"\x1f\x8b": ("gzip-compressed", "Name it .jsonl.gz or .json.gz."),
    b"\x28\xb5\x2f\xfd": ("compressed (zstd)", "Unpack it, or pack it as .gz."),
    b"\xfd7zXZ": ("compressed (xz)", "Unpack it, or pack it as .gz."),
    b"BZh": ("compressed (bzip2)", "Unpack it, or pack it as .gz."),
    b"PK\x03\x04": ("a zip archive", "Unpack it."),
    PARQUET_MAGIC: ("a Parquet file", "Name it .parquet."),
    ARROW_MAGIC: ("an Arrow file", "Name it .arrow."),
}  # first bytes -> what a file is, and what helps


def read_rows(path: Path, wanted: frozenset[str] | None = None) -> Iterator[RawRow]:
    """Yield the raw rows of one file. Raises ``DataError`` for a file that is damaged or holds no rows.

    Of columnar files the ``wanted`` columns alone are read, if any are named. Rows of JSON are whole: their text is kept.
    """
    try:
        if path.name.endswith(".parquet"):
            yield from _parquet_rows(path, wanted)
        elif path.name.endswith(".arrow"):
            yield from _arrow_rows(path, wanted)
        else:
            with _open_text(path) as file:
                yield from json_rows(path, file)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} {_no_text(path, error)}") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}. {AGAIN}") from error
    except PermissionError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Make it readable.") from error


def _no_text(path: Path, error: UnicodeDecodeError) -> str:
    """What a file that is no text may be, by how it begins."""
    with path.open("rb") as file:
        head = file.read(8)
    for magic, (kind, cure) in _BEGINNINGS.items():
        if head.startswith(magic):
            return f"is {kind}, whatever its name says. {cure}"
    return f"is not UTF-8 text ({error.reason}). Convert it to UTF-8."


def _parquet_rows(path: Path, wanted: frozenset[str] | None) -> Iterator[RawRow]:
    import pyarrow.parquet as pq

    with _readable(path, "Parquet"), pq.ParquetFile(path) as file:
        _refuse_two_parquet_files(path, file.metadata)
        names = file.schema_arrow.names
        read = names if wanted is None else [name for name in names if name in wanted]
        unread = tuple(name for name in names if name not in read)
        for batch in file.iter_batches(batch_size=_rows_at_once(file.metadata), columns=read):
            for row in rows_of(batch):
                yield RawRow(row, unread=unread)


@contextlib.contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """Raise ``DataError`` for what the library raises of a file, which is nearly anything; but for want of memory."""
    try:
        yield
    except (DataError, MemoryError):  # of Arrow's own, too
        raise
    except Exception as error:
        raise DataError(f"{path} is no readable {kind} file: {error}. {AGAIN}") from error


def _rows_at_once(about: "pq.FileMetaData") -> int:
    """Fewer of long rows, as far as the file is honest about them."""
    longest = max(
        (
            about.row_group(i).total_byte_size // max(1, about.row_group(i).num_rows)
            for i in range(about.num_row_groups)
        ),
        default=0,
    )
    return min(ROWS_AT_ONCE, max(1, BYTES_AT_ONCE // max(1, longest)))


def _refuse_two_parquet_files(path: Path, about: "pq.FileMetaData") -> None:
    """Raise ``DataError`` for a file put together from several: the last one's directory would be read as that of the
    first. Between the last column and the directory stand indexes, or, then, another file's beginning."""
    columns = [
        about.row_group(i).column(j) for i in range(about.num_row_groups) for j in range(about.num_columns)
    ]
    last = max(
        (
            min(filter(None, (one.data_page_offset, one.dictionary_page_offset))) + one.total_compressed_size
            for one in columns
        ),
        default=len(PARQUET_MAGIC),
    )
    with path.open("rb") as file:
        directory = os.fstat(file.fileno()).st_size - about.serialized_size - 2 * len(PARQUET_MAGIC)
        file.seek(last)
        if 2 * PARQUET_MAGIC in file.read(max(directory - last, 0)):
            raise DataError(_SEVERAL.format(path=path, kind="Parquet"))


def _arrow_rows(path: Path, wanted: frozenset[str] | None) -> Iterator[RawRow]:
    """Rows of an Arrow file, or of one or more streams behind each other."""
    import pyarrow as pa

    with _readable(path, "Arrow"), pa.memory_map(str(path)) as source:
        is_file = source.read(len(ARROW_MAGIC)) == ARROW_MAGIC
        source.seek(8 if is_file else 0)  # behind its mark a file holds a stream, then its directory
        while True:
            for batch in pa.ipc.open_stream(source):
                names = batch.schema.names
                read = [number for number, name in enumerate(names) if wanted is None or name in wanted]
                unread = tuple(name for number, name in enumerate(names) if number not in read)
                for row in rows_of(batch.select(read)):
                    yield RawRow(row, unread=unread)
            if is_file:
                _refuse_two_arrow_files(path, source)
                return
            if source.tell() >= source.size():
                _refuse_open_end(path, source)
                return


def _refuse_open_end(path: Path, source: "pa.MemoryMappedFile") -> None:
    """Raise ``DataError`` if the stream lacks its end mark: cut off between two batches, it looks whole but for that."""
    source.seek(0)
    has_marks = source.read(4) == END_OF_STREAM[:4]  # not in streams of before 2019
    source.seek(source.size() - len(END_OF_STREAM))
    if has_marks and source.read(len(END_OF_STREAM)) != END_OF_STREAM:
        raise DataError(f"{path} has no end mark: it is cut off, or still being written. {AGAIN}")


def _refuse_two_arrow_files(path: Path, source: "pa.MemoryMappedFile") -> None:
    """Raise ``DataError`` if more than the directory stands behind the stream of an Arrow file, or if it is cut off."""
    stream_end, tail = source.tell(), 4 + len(ARROW_MAGIC)
    source.seek(source.size() - tail)
    directory, magic = int.from_bytes(source.read(4), "little"), source.read(len(ARROW_MAGIC))
    if magic != ARROW_MAGIC:
        raise DataError(f"{path} does not end as an Arrow file does: it is cut off. {AGAIN}")
    if stream_end + directory + tail != source.size():
        raise DataError(_SEVERAL.format(path=path, kind="Arrow"))


def _open_text(path: Path) -> TextIO:
    opener = gzip.open if path.name.endswith(".gz") else open
    return io.TextIOWrapper(opener(path, "rb"), encoding="utf-8-sig")
