"""Raw rows of local files, one at a time: JSON lines, JSON arrays, gzip, Parquet, Arrow. Memory is flat in the rows, but
for a JSON object over many lines, which is parsed whole.

Rows are Python values and need not share columns or types. A file that cannot be read is a ``DataError`` that says
where it breaks.
"""

import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from dpo_core.contract.errors import DataError
from dpo_core.data.columnar_rows import rows_of

SUPPORTED = (".jsonl", ".json", ".parquet", ".arrow", ".jsonl.gz", ".json.gz")
NOT_ROWS = ("dataset_info.json", "state.json", "dataset_dict.json", "dataset_infos.json")
READ_CHARACTERS = 1 << 20
MAX_ROW_CHARACTERS = 64 << 20  # a few kB packed can be a line of gigabytes
MAX_OBJECT_CHARACTERS = 512 << 20
WRAPPERS = ("data", "rows", "train", "examples", "instances")  # {"data": [...]} instead of [...]

_SHARD = re.compile(r"^(?P<split>\w+(?:\.\w+)*?)-\d+-of-\d+")
_NO_SPLITS = (
    "data",
    "part",
    "shard",
    "chunk",
    "file",
    "rows",
)  # what shards are called when they name no split
_SPLIT_WORDS = {
    "train": "train",
    "test": "test",
    "eval": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}


def is_supported(path: Path) -> bool:
    """Whether the file's name says that it holds rows."""
    return path.name.endswith(SUPPORTED) and path.name not in NOT_ROWS


def files_of(path: Path, split: str) -> list[Path]:
    """The data files of a local source in reading order. Raises ``DataError`` if there is none."""
    if path.is_dir():
        return _files_of_directory(path, split)
    if not path.exists():
        raise DataError(
            f"The data file {path} does not exist. Check `source`: a local file or directory, or org/name "
            "for a Hub data set."
        )
    if not is_supported(path):
        raise DataError(f"{path} is no data file that can be read. Supported: {', '.join(SUPPORTED)}.")
    if split != "train":
        raise DataError(
            f"{path} is a local file and has only the split `train`, got split `{split}`. Name the file "
            "that you want."
        )
    return [path]


def split_of(path: Path) -> str | None:
    """The split that a file's name or folder speaks of, None if of none. ``path`` is relative to the source."""
    if (shard := _SHARD.match(path.name)) and shard["split"] not in _NO_SPLITS:
        return shard["split"]
    words = re.split(r"[^a-z]+", f"{path.parent.name}/{path.name}".lower())
    return next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), None)


def _files_of_directory(folder: Path, split: str) -> list[Path]:
    names = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and is_supported(p))
    files = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    if not files:
        raise DataError(f"The directory {folder} holds no data file. Supported: {', '.join(SUPPORTED)}.")
    splits = {name: split_of(name) for name in files}
    wanted = [name for name in files if splits[name] == split]
    if not wanted and split == "train":
        wanted = [name for name in files if splits[name] is None]
    if not wanted:
        found = sorted({s or "train" for s in splits.values()})
        raise DataError(
            f"{folder} has no split `{split}`; its files speak of {', '.join(found)}. Set `split`."
        )
    return [folder / name for name in wanted]


class RawRow(NamedTuple):
    """A row's value, and its JSON text where the file holds one that can be kept as it is."""

    value: Any
    text: str | None = None


def read_rows(path: Path) -> Iterator[RawRow]:
    """Yield the raw rows of one file. Raises ``DataError`` for a file that is damaged or holds no rows."""
    try:
        if path.name.endswith(".parquet"):
            yield from map(RawRow, _parquet_rows(path))
        elif path.name.endswith(".arrow"):
            yield from map(RawRow, _arrow_rows(path))
        else:
            yield from _json_rows(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}). Convert it to UTF-8.") from error
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged: {error}. Download or write it again.") from error
    except PermissionError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Make it readable.") from error


def _parquet_rows(path: Path) -> Iterator[dict]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from rows_of(batch)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is no readable Parquet file: {error}. Download or write it again."
        ) from error


def _arrow_rows(path: Path) -> Iterator[dict]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            if is_file:
                reader = pa.ipc.open_file(source)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                batches = iter(pa.ipc.open_stream(source))
            for batch in batches:
                yield from rows_of(batch)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is no readable Arrow file: {error}. Download or write it again.") from error


def _open_text(path: Path) -> TextIO:
    opener = gzip.open if path.name.endswith(".gz") else open
    return io.TextIOWrapper(opener(path, "rb"), encoding="utf-8-sig")


def _json_rows(path: Path) -> Iterator[RawRow]:
    """Rows of JSON text; what the text is (lines, an array, one object) is seen from its first characters."""
    with _open_text(path) as file:
        first = next(
            (text for text in iter(lambda: file.readline(MAX_ROW_CHARACTERS), "") if text.strip()), ""
        )
    if first.lstrip()[:1] == "[":
        yield from map(RawRow, _array_rows(path))
    elif path.name.removesuffix(".gz").endswith(".json") and first and not _is_json(first):
        yield from map(RawRow, _object_rows(path))
    else:
        yield from _line_rows(path)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    except RecursionError:
        pass
    return True


def _line_rows(path: Path) -> Iterator[RawRow]:
    with _open_text(path) as file:
        for number, line in enumerate(_lines(file), 1):
            if line is None:  # it is counted, and dropped as no preference row
                yield RawRow(None)
                continue
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except RecursionError:  # likewise
                yield RawRow(None)
                continue
            except ValueError as error:
                reason = getattr(error, "msg", str(error))
                raise DataError(
                    f"{path} line {number} is no complete JSON value ({reason}); it starts with "
                    f"{line[:60]!r} and ends with {line.rstrip()[-30:]!r}. The file is cut off or damaged: "
                    "write it again or remove the line."
                ) from error
            # An escape may stand for half a character, which no UTF-8 text can hold.
            yield RawRow(row, None if "\\u" in line else line.strip())


def _lines(file: TextIO) -> Iterator[str | None]:
    """The lines of a file; None for one that is longer than a row may be, which is passed by."""
    while line := file.readline(MAX_ROW_CHARACTERS):
        if len(line) < MAX_ROW_CHARACTERS:
            yield line
            continue
        while line and not line.endswith("\n"):
            line = file.readline(MAX_ROW_CHARACTERS)
        yield None


def _array_rows(path: Path) -> Iterator[Any]:
    """Elements of a JSON array, parsed one by one from a sliding buffer."""
    decoder = json.JSONDecoder()
    with _open_text(path) as file:
        buffer, position, count, ended = file.read(READ_CHARACTERS), 0, 0, False
        position = buffer.index("[") + 1
        while True:
            position = _skip(buffer, position, " \t\r\n")
            if position < len(buffer) and buffer[position] == "]":
                return
            start = _skip(buffer, position, ", \t\r\n") if count else position
            try:
                row, end = decoder.raw_decode(buffer, start)
                # A number at the buffer's end may go on in the next block.
                complete = end < len(buffer) or ended
            except RecursionError:
                raise DataError(
                    f"{path}: element {count} is nested too deeply for a row. Remove it."
                ) from None
            except ValueError as error:
                if ended:
                    raise DataError(
                        f"{path} is no complete JSON array: it breaks in element {count} "
                        f"({getattr(error, 'msg', error)}), near {buffer[start : start + 60]!r}. The file is "
                        "cut off or damaged: write it again."
                    ) from error
                complete = False
            if complete:
                yield row
                position, count = end, count + 1
            elif len(buffer) - start > MAX_ROW_CHARACTERS:
                raise DataError(
                    f"{path}: element {count} is longer than {MAX_ROW_CHARACTERS >> 20} Mi characters, which no "
                    "row is. Remove it."
                )
            else:
                block = file.read(max(READ_CHARACTERS, len(buffer)))
                buffer, position, ended = buffer[position:] + block, 0, not block


def _skip(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position


def _object_rows(path: Path) -> Iterator[Any]:
    """A .json file that is one object over many lines: ``{"data": [rows]}``, or a single row."""
    with _open_text(path) as file:
        text = file.read(MAX_OBJECT_CHARACTERS + 1)
    if len(text) > MAX_OBJECT_CHARACTERS:
        raise DataError(
            f"{path} is one JSON object of more than {MAX_OBJECT_CHARACTERS >> 20} Mi characters, which is read "
            "whole. Write its rows as JSON lines (.jsonl)."
        )
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is neither JSON lines nor one JSON value: {error}. The file is cut off or damaged: "
            "write it again."
        ) from error
    rows = next(
        (value[key] for key in WRAPPERS if isinstance(value, dict) and isinstance(value.get(key), list)), None
    )
    yield from [value] if rows is None else rows
