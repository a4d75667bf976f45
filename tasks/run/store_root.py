"""Which folder is a store: the one that carries our marker. Nothing is ever collected in a folder without it."""

import re
from collections.abc import Iterator
from pathlib import Path

from dpo_core.contract.errors import ConfigError, from_os_error
from dpo_core.contract.store import write_json
from tasks.launch.store_access import STORE_MARKER as MARKER

ENTRY_NAME = re.compile(
    r"[0-9a-f]{16}"
)  # of a step's result, of a snapshot: the first digits of its fingerprint
OURS = {"serve", "prefect", "chain-demo"}  # of `pairline up`, whose folder is the store's by default


def prepare_store(root: Path) -> Path:
    """Make the store's folder and mark it, unless other things lie in it: such a folder works, but is never collected.

    A store that is made here is its user's alone; one to be shared is a folder that was there before, with its modes. A
    store from before there was a marker is known by the record of a run. Raises ``StoreError`` or ``DiskFull``.
    """
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        root.mkdir(mode=0o700, exist_ok=True)
        foreign = any(path.name not in OURS and not path.name.startswith(".") for path in root.iterdir())
    except OSError as error:
        raise from_os_error(error, "making the store") from error
    if not (root / MARKER).exists() and (not foreign or any(root.glob("runs/*/run.json"))):
        write_json(root / MARKER, {"format": 1})
    return root


def marked_store(root: Path) -> Path:
    """Return the folder, with its links resolved, if it is a store. Raises ``ConfigError`` that says why it is not."""
    store = root.expanduser().resolve()
    if not (store / MARKER).is_file() or (store / MARKER).is_symlink():
        raise ConfigError(
            f"{store} is not marked as a store of Pairline's, so nothing in it is touched. Give the store.root"
            " of the recipe; a store of an earlier version is marked by its next run. A folder that held "
            f"other files before its first run is not; if it is a store all the same, make {store / MARKER}."
        )
    return store


def entries_below(store: Path, step: str) -> Iterator[Path]:
    """Yield the folders <store>/<step>/<16 hexadecimal digits>. Neither a link nor what is named otherwise is ours to
    remove.
    """
    folder = store / step
    if folder.is_dir() and not folder.is_symlink():
        for path in sorted(folder.iterdir()):
            if ENTRY_NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                yield path
