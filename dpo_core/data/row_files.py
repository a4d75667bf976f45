"""Which files of a local source are read, in which order. What would be missed, or taken twice, is refused, or told.

A file of rows that nobody can read, a link that leads nowhere and a folder behind a link are refused: their rows would be
missing without a word. So is a file in two forms. Files that are passed by because their names speak of another split, or of
none beside some that do, and shards of which others are missing, are what people may want; the ledger warns of them.
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from dpo_core.contract.errors import DataError

JSON_ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
SUPPORTED = (*JSON_ENDINGS, ".parquet", ".arrow")
NOT_ROWS = ("dataset_info.json", "state.json", "dataset_dict.json", "dataset_infos.json")
MOST_SHARDS = 100_000  # whose names are looked for

# Rows in a form, or under a name, that is not read: beside files that are, they would be missed without a word. The last
# lines: what `split`, log rotation and broken downloads make of a name.
_UNREAD = re.compile(
    r".*\.(?:(?:jsonl|ndjson|jsonlines|jl|parquet|pq|arrow|feather|orc|avro|csv|tsv|xlsx)"
    r"(?:\.(?:gz|zst|zstd|xz|bz2|zip|lz4|br))?|json\.(?:gz|zst|zstd|xz|bz2|zip|lz4|br)"
    r"|(?:jsonl|json|parquet|arrow)(?:\.gz)?"
    r"\.(?:\d+|a[a-z]|part\w*|incomplete|download|crdownload))",
    re.IGNORECASE,
)
_JSON = re.compile(r".*\.json", re.IGNORECASE)  # ``B.JSON``, which is no name that is read
# Which may hold rows.
_ARCHIVE = re.compile(r".*\.(?:tar(?:\.\w+)?|tgz|zip|7z|rar)|[^.]+\.(?:gz|zst|zstd|xz|bz2)", re.IGNORECASE)
_SHARD = re.compile(r"^(?P<split>\w+(?:\.\w+)*?)-(?P<number>\d+)-of-(?P<count>\d+)")
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
    """Return whether the file's name says that it holds rows."""
    return path.name.endswith(SUPPORTED) and path.name not in NOT_ROWS


def _is_unread(path: Path) -> bool:
    """Return whether the file's name says that it holds rows in a form, or under a name, that is not read."""
    if path.name.lower() in NOT_ROWS or is_supported(path):
        return False
    return any(pattern.fullmatch(path.name) for pattern in (_UNREAD, _JSON))


def files_of(path: Path, split: str) -> list[Path]:
    """Return the data files of a local source in reading order. Raises ``DataError`` if there is none."""
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


def passed_by(path: Path, split: str) -> tuple[list[str], list[str]]:
    """Return names of a directory's files that are not read although nothing says that they belong to another split, its
    archives among them, and of shards that are not there although others say so."""
    if not path.is_dir():
        return [], []
    read = [file.relative_to(path) for file in _files_of_directory(path, split)]
    others = [name for name in _data_files(path) if name not in read and not _is_plainly_of_a_split(name)]
    others += [name for name in _visible(path) if _ARCHIVE.fullmatch(name.name) and not is_supported(name)]
    return [name.as_posix() for name in others], _missing_shards(read)


def split_of(path: Path) -> str | None:
    """Return the split that a file's name or folder speaks of, None if of none. ``path`` is relative to the source."""
    if (shard := _SHARD.match(path.name)) and shard["split"] not in _NO_SPLITS:
        return shard["split"]
    words = re.split(r"[^a-z]+", f"{path.parent.name}/{path.name}".lower())
    return next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), None)


def _is_plainly_of_a_split(name: Path) -> bool:
    """Whether a file is a split's and nothing else: ``test-00000-of-00001.parquet``, ``test.jsonl``, ``test/rows.jsonl``."""
    if (shard := _SHARD.match(name.name)) and shard["split"] not in _NO_SPLITS:
        return True
    return any(part.lower() in _SPLIT_WORDS for part in (name.name.partition(".")[0], *name.parts[:-1]))


def _missing_shards(names: Iterable[Path]) -> list[str]:
    """Names of the shards, ``train-00001-of-00003``, that others say are there."""
    found: dict[tuple[Path, str, int], dict[int, int]] = {}
    for name in names:
        if shard := _SHARD.match(name.name):
            of = found.setdefault((name.parent, shard["split"], int(shard["count"])), {})
            of[int(shard["number"])] = len(shard["number"])
    missing = []
    for (folder, split, count), numbers in found.items():
        first = 0 if 0 in numbers or count not in numbers else 1  # some count from 1
        width = max(numbers.values())
        missing += [
            (folder / f"{split}-{number:0{width}}-of-{count:0{width}}").as_posix()
            for number in range(first, first + min(count, MOST_SHARDS))
            if number not in numbers
        ]
    return missing


def _is_cache(path: Path) -> bool:
    """Whether a file is one that `datasets` left beside a set that it had saved: its state names the set's own."""
    if path.suffix != ".arrow":
        return False
    try:
        state = json.loads((path.parent / "state.json").read_bytes())
        own = {one["filename"] for one in state["_data_files"]}
    except (
        OSError,
        ValueError,
        RecursionError,
        LookupError,
        TypeError,
    ):  # no such state, or something else's
        return False
    return path.name not in own


def _visible(folder: Path) -> list[Path]:
    """What lies below ``folder`` and is no directory, hidden files aside, relative to it. Raises ``DataError`` for what
    cannot be looked into."""
    found = []
    for parent, folders, files in os.walk(folder, onerror=_refuse_folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if (path := Path(parent, name)).is_symlink():
                _refuse_linked(folder, path)
        found += [Path(parent, name).relative_to(folder) for name in files if not name.startswith(".")]
    return sorted(found)


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}. Make it readable.") from error


def _refuse_linked(folder: Path, path: Path) -> None:
    """Raise ``DataError`` if rows lie behind a link to a directory, which is not followed: it may lead back."""
    for _, _, files in os.walk(path):
        if any(is_supported(Path(name)) or _is_unread(Path(name)) for name in files):
            raise DataError(
                f"{folder} holds {path.relative_to(folder)}, a link to a directory with rows, which is not followed. Name "
                "that directory as a source of its own, or move its files here."
            )


def _data_files(folder: Path) -> list[Path]:
    """The files that hold rows by their names, relative to ``folder``. Raises ``DataError`` for one that leads nowhere."""
    names = [name for name in _visible(folder) if is_supported(name) and not _is_cache(folder / name)]
    for name in names:
        if not (folder / name).is_file():
            raise DataError(
                f"{folder} holds {name}, which is no file"
                + (", or a link that leads nowhere" if (folder / name).is_symlink() else "")
                + ". Fetch it again, or remove it."
            )
    return names


def _files_of_directory(folder: Path, split: str) -> list[Path]:
    files = _data_files(folder)
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
    unread = [name for name in _visible(folder) if _is_unread(name)]
    if missed := [name for name in unread if split_of(name) in {split, *(splits[name] for name in wanted)}]:
        raise DataError(
            f"{folder} holds {missed[0]} beside the files that are read, and it would be missed. Supported are "
            f"{', '.join(SUPPORTED)}: pack or name it as one of these, or move it elsewhere."
        )
    _refuse_twice(folder, wanted)
    return [folder / name for name in wanted]


def _refuse_twice(folder: Path, names: Iterable[Path]) -> None:
    """Raise ``DataError`` if a file that is read lies there in another form, too: ``a.jsonl`` and ``a.jsonl.gz``."""
    found: dict[Path, Path] = {}
    for name in names:
        bare = (name.with_suffix("") if name.suffix == ".gz" else name).with_suffix("")
        if bare in found:
            raise DataError(
                f"{folder} holds {found[bare]} and {name}, one name in two forms: its rows would be taken twice. Move one "
                "of them elsewhere, or give the file that you want as `source`."
            )
        found[bare] = name
