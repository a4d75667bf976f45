"""The files of a checkpoint that others made: regular ones that lie inside its folder, and JSON within limits.

A link that leads out of the folder would have a file of yours copied, hashed and published as the checkpoint's. Only the
Hub client's cache is made of such links, and they lead to one place:

    <cache>/models--org--name/snapshots/<commit>/config.json -> ../../blobs/<hash> (-> <cache>/blobs/<2 digits>/<hash>)
"""

import codecs
import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from dpo_core.contract.bounded_json import MAX_MARKS, bounded_json
from dpo_core.contract.errors import CheckpointError
from dpo_core.contract.regular_file import NotRegular, TooLong, opened, read_at_most
from dpo_core.contract.store import sha256_of

HASH = r"[0-9a-f]{40}|[0-9a-f]{64}"  # git's of a small file, sha256 or xet's of a large one
MAX_JSON_BYTES = 64 << 20  # the index of 500 000 tensors
MAX_TEXT_BYTES = 4 << 20  # the largest known chat templates have 50 kB
MAX_JSON_DEPTH = 32


def _leads_down(name: str) -> bool:
    """Whether ``name`` is a relative path that no part of leads up."""
    return bool(name) and not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts


def _belongs(real: Path, folder: Path) -> bool:
    """Whether the file at ``real``, without links, is the folder's own or lies where the Hub client's cache keeps it."""
    if real.is_relative_to(folder):
        return True
    if folder.parent.name != "snapshots" or not folder.parent.parent.name.startswith("models--"):
        return False
    repository = folder.parent.parent
    of_cache = rf"blobs/(?:{HASH}|(?P<first>[0-9a-f]{{2}})/(?P=first)[0-9a-f]{{62}})"
    where = next(
        (real.relative_to(place) for place in (repository, repository.parent) if real.is_relative_to(place)),
        None,
    )
    return where is not None and re.fullmatch(of_cache, where.as_posix()) is not None


@contextlib.contextmanager
def opened_inside(folder: Path, name: str) -> Iterator[BinaryIO]:
    """Open the file ``name`` of a checkpoint's folder, to be read.

    What was opened is what is looked at, so a link that is put in its place meanwhile helps nobody. Raises
    ``CheckpointError`` for a file that lies elsewhere or is none (a pipe, a device).
    """
    try:
        opened_file = opened(folder / name)
    except NotRegular:
        raise CheckpointError(
            f"{folder / name} is no regular file, as those of a checkpoint are.", "Remove it."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{folder / name} cannot be read: {error.strerror}.") from error
    with opened_file as file:
        of_process = Path(f"/proc/self/fd/{file.fileno()}")
        real = of_process.readlink() if of_process.exists() else (folder / name).resolve()
        if not _leads_down(name) or not _belongs(real, folder.resolve()):
            raise CheckpointError(
                f"{folder / name} is a link to {real}, outside the checkpoint, and what it leads to would "
                "be published with it.",
                "If that is meant, put a copy of the file in the link's place.",
            )
        yield file


def check_inside(folder: Path, names: list[str]) -> None:
    """Raise ``CheckpointError`` for the first of ``names`` that is no regular file inside ``folder``."""
    for name in names:
        with opened_inside(folder, name):
            pass


def hash_named(folder: Path, names: list[str]) -> dict[str, str]:
    """Return relative path -> sha256 of the named files. Raises ``CheckpointError`` for one that lies elsewhere."""
    hashes = {}
    for name in names:
        with opened_inside(folder, name) as file:
            hashes[name] = sha256_of(file)
    return hashes


def read_text_file(path: Path) -> str:
    """Return the text of a checkpoint's small file, with line breaks as Python reads them. Raises ``CheckpointError``."""
    try:
        with opened(path) as file:
            return io.TextIOWrapper(io.BytesIO(read_at_most(file, MAX_TEXT_BYTES)), encoding="utf-8").read()
    except TooLong:
        raise _beyond(path, f"larger than {MAX_TEXT_BYTES >> 20} MiB") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as text ({error}). Fetch the checkpoint again."
        ) from error


def read_json_file(path: Path) -> dict:
    """Return a JSON object from a checkpoint's file. Raises ``CheckpointError`` naming the file."""
    try:
        with opened(path) as file:
            raw = read_at_most(file, MAX_JSON_BYTES)
        if raw.startswith(codecs.BOM_UTF8):
            raise ValueError("it begins with a byte order mark, which nobody else reads")
        raw.decode()  # other encodings JSON's parser would guess, and those who read the file next would not
        value = bounded_json(raw)
    except TooLong:
        raise _beyond(path, f"larger than {MAX_JSON_BYTES >> 20} MiB or {MAX_MARKS:,} values") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as JSON in UTF-8 ({error}). Fetch the checkpoint again."
        ) from error
    except RecursionError:
        raise _beyond(path, _TOO_DEEP) from None
    if _is_deeper(value, MAX_JSON_DEPTH):
        raise _beyond(path, _TOO_DEEP)
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path} holds a JSON {type(value).__name__}, expected an object. Fetch the checkpoint again."
        )
    return value


_TOO_DEEP = f"nested more than {MAX_JSON_DEPTH} levels deep"


def _beyond(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} is {what}, which no file of its kind is. Do not use this checkpoint.")


def _is_deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        level = [
            item
            for outer in level
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True
