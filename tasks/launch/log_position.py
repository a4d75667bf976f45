"""How far a container's log has been copied to ``log.txt``, so that another process can go on without a gap or a repeat."""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from dpo_core.errors import PairlineError
from dpo_core.jobs import LOG_FILE
from dpo_core.store import write_json

POSITION_FILE = ".log-position.json"


def save_position(folder: Path, times: Mapping[str, str]) -> None:
    """Everything up to ``times`` (container id -> time of its last line, "" for none) stands in ``log.txt``."""
    with contextlib.suppress(OSError, PairlineError):  # a full disk: lines may be repeated later
        write_json(folder / POSITION_FILE, {"bytes": (folder / LOG_FILE).stat().st_size, "times": dict(times)})


def saved_times(folder: Path) -> dict[str, str]:
    """As saved, for all containers whose log was being copied when its orchestrator ended; none where all was read."""
    try:
        return dict(json.loads((folder / POSITION_FILE).read_bytes())["times"])
    except (OSError, ValueError, KeyError):
        return {}


def forget_position(folder: Path) -> None:
    """The containers are gone."""
    with contextlib.suppress(OSError):
        (folder / POSITION_FILE).unlink(missing_ok=True)


def go_back_to_position(folder: Path, container_ids: Iterable[str]) -> dict[str, str]:
    """Cut ``log.txt`` to where its position was saved last. -> container id -> time of its last line there

    Empty if nothing was saved for these containers: then all of their log is to be copied.
    """
    try:
        saved = json.loads((folder / POSITION_FILE).read_bytes())
        times = {one: str(saved["times"][one]) for one in container_ids}
        if (folder / LOG_FILE).stat().st_size >= saved["bytes"]:
            os.truncate(folder / LOG_FILE, saved["bytes"])
        return times
    except (OSError, ValueError, KeyError):
        return {}
