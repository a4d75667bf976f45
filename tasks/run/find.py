"""Which run a person means."""

import re
from pathlib import Path

from dpo_core.contract.errors import ConfigError
from tasks.run.folder import RUN_FILE, read_runs

LAST = re.compile(r"last(?:~(\d+))?")


def find_run(name: str, store: Path) -> Path:
    """Return the folder of a run: the path of one in any store, ``last``, ``last~1`` (the one before), or a name in
    ``store``.

    Raises ``ConfigError`` if there is none.
    """
    if (Path(name) / RUN_FILE).is_file():
        return Path(name).resolve()
    if not store.is_dir():
        raise ConfigError(f"There is no store at {store}. Give the store.root of the recipe with --store.")
    folders = [folder for folder, _ in read_runs(store)]
    if back := LAST.fullmatch(name):
        place = int(back[1] or 0)
        if place < len(folders):
            return folders[-1 - place].resolve()
    found = [folder for folder in folders if folder.name == name]
    if not found:
        raise ConfigError(
            f"There is no run {name!r} in {store}. `pairline status --store {store}` lists them."
        )
    return found[0].resolve()
