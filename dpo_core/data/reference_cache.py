"""The cache of reference log-probabilities: shards keyed by row content, shared by all mixtures of one model.

    <cache_dir>/<model and numerics>/shard-<sha256 of its bytes>.npz     row_keys [n], sums, tails, tokens [n, 2]

A shard is complete or not there; one whose bytes do not match its name is reported, deleted and computed again. Sums
and token counts are kept apart, so that one cache serves every loss, beta and learning rate.
"""

import hashlib
import io
import logging
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpo_core.contract.errors import StoreError
from dpo_core.contract.refs import ReferenceRef
from dpo_core.contract.store import verify_files, write_bytes
from dpo_core.data.pair_file import KEY_TYPE

log = logging.getLogger(__name__)

NAME_DIGITS = 32
RowKeys = (
    np.ndarray | Sequence[str] | Sequence[bytes]
)  # content keys; those of a data set are an array of bytes, S32


@dataclass(frozen=True, slots=True)
class ReferenceRows:
    """Reference values of n rows; columns are chosen, rejected."""

    sums: np.ndarray  # float32 [n, 2], sums of log-probabilities over the trained tokens
    tokens: np.ndarray  # int32 [n, 2], how many tokens that are
    tails: np.ndarray  # float32 [n, 2], the parts of the sums beyond the other side's length (see PairLogps)

    @classmethod
    def concatenate(cls, parts: Sequence["ReferenceRows"]) -> "ReferenceRows":
        """Return the rows of all parts in order; no parts are no rows."""
        nothing = cls(*(np.zeros((0, 2), kind) for kind in (np.float32, np.int32, np.float32)))
        return cls(
            *(
                np.concatenate([getattr(part, name) for part in (nothing, *parts)])
                for name in ("sums", "tokens", "tails")
            )
        )

    def __getitem__(self, places: np.ndarray | slice) -> "ReferenceRows":
        return ReferenceRows(self.sums[places], self.tokens[places], self.tails[places])

    def to_bytes(self, row_keys: RowKeys) -> bytes:
        """Return one ``.npz`` without pickle."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            row_keys=np.asarray(row_keys, dtype=KEY_TYPE),
            sums=self.sums,
            tokens=self.tokens,
            tails=self.tails,
        )
        return buffer.getvalue()


def write_shard(folder: Path, row_keys: RowKeys, rows: ReferenceRows) -> Path:
    """Write one shard atomically under the name of its content."""
    content = rows.to_bytes(row_keys)
    path = folder / f"shard-{hashlib.sha256(content).hexdigest()[:NAME_DIGITS]}.npz"
    write_bytes(path, content)
    return path


def _read_shard(path: Path) -> tuple[np.ndarray, ReferenceRows] | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:  # damaged, and another process was first to delete it
        return None
    if path.stem.removeprefix("shard-") != hashlib.sha256(content).hexdigest()[:NAME_DIGITS]:
        log.warning("reference shard %s is damaged; its rows are computed again", path)
        path.unlink(missing_ok=True)
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as shard:
        return shard["row_keys"], _rows_in(shard)


def _rows_in(file: np.lib.npyio.NpzFile) -> ReferenceRows:
    return ReferenceRows(file["sums"], file["tokens"], file["tails"])


class ReferenceCache:
    """All shards of one model. Rows are looked up by content key; 56 bytes a row in memory.

    ``names``: shards that are there by what other processes say; a network file system may list them up to a minute late.
    """

    def __init__(self, folder: Path, names: Iterable[str] = ()) -> None:
        self.folder = folder
        paths = sorted({*folder.glob("shard-*.npz"), *(folder / name for name in names)})
        shards = [shard for path in paths if (shard := _read_shard(path))]
        keys = np.concatenate([np.zeros(0, KEY_TYPE), *(keys for keys, _ in shards)])
        self._keys, first = np.unique(keys, return_index=True)  # of a row in several shards the first counts
        self._rows = ReferenceRows.concatenate([rows for _, rows in shards])[first]

    def _places(self, row_keys: RowKeys) -> tuple[np.ndarray, np.ndarray]:
        """Where rows stand, int64 [n], and whether they do, bool [n]."""
        row_keys = np.asarray(row_keys, dtype=KEY_TYPE)
        if not len(self._keys):
            return np.zeros(len(row_keys), np.int64), np.zeros(len(row_keys), dtype=bool)
        places = np.minimum(np.searchsorted(self._keys, row_keys), len(self._keys) - 1)
        return places, self._keys[places] == row_keys

    def is_missing(self, row_keys: RowKeys) -> np.ndarray:
        """Return which rows no shard holds, bool [n]."""
        return ~self._places(row_keys)[1]

    def look_up(self, row_keys: RowKeys) -> ReferenceRows:
        """Return the values of these rows in this order. Raises ``StoreError`` if one is not there."""
        places, is_there = self._places(row_keys)
        if gone := int((~is_there).sum()):
            raise StoreError(f"{self.folder} lacks {gone} reference rows. Run the reference step again.")
        return self._rows[places]


def write_aligned(path: Path, row_keys: RowKeys, rows: ReferenceRows) -> None:
    """Write the rows of one split in the mixture's order."""
    write_bytes(path, rows.to_bytes(row_keys))


def read_reference(reference: ReferenceRef, split: str, row_keys: RowKeys) -> ReferenceRows:
    """Return ``read_aligned`` of a file whose bytes are those that the reference step wrote. Raises ``StoreError``."""
    name = f"{split}.npz"
    verify_files(reference.path, {name: reference.files[name]} if name in reference.files else {})
    return read_aligned(reference.path, split, row_keys)


def read_aligned(folder: Path, split: str, row_keys: RowKeys) -> ReferenceRows:
    """Return reference rows of a split. Raises ``StoreError`` unless they are of exactly these rows in this order."""
    path = folder / f"{split}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            keys, rows = file["row_keys"], _rows_in(file)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StoreError(
            f"{path} cannot be read ({error}).", f"Delete {folder.parent} to have it made again."
        ) from error
    if len(keys) != len(row_keys) or not np.array_equal(keys, np.asarray(row_keys, dtype=keys.dtype)):
        raise StoreError(
            f"{path} is of another mixture: its rows are not those of the data.",
            f"Delete {folder.parent} to have it made again.",
        )
    return rows
