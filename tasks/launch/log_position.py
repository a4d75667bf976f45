"""How far a container's log has been copied to ``log.txt``, so that another process can go on without a gap or a repeat."""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from dpo_core.contract.errors import PairlineError
from dpo_core.contract.job import LOG_FILE
from dpo_core.contract.regular_file import is_plain_file, open_regular, read_regular
from dpo_core.contract.store import write_json
from tasks.launch.own_folder import POSITION_FILE, own_folder

LARGEST_POSITION_BYTES = 1 << 20


def save_position(folder: Path, times: Mapping[str, str]) -> None:
    """Record that everything up to ``times`` (container id -> time of its last line, "" for none) stands in the log of
    the job in ``folder``."""
    own = own_folder(folder)
    with contextlib.suppress(OSError, PairlineError):  # a full disk: lines may be repeated later
        num_bytes = (own / LOG_FILE).lstat().st_size if is_plain_file(own / LOG_FILE) else 0
        write_json(own / POSITION_FILE, {"bytes": num_bytes, "times": dict(times)})


def saved_times(folder: Path) -> dict[str, str]:
    """Return what was saved, for all containers whose log was being copied when its orchestrator ended; none where all
    was read.
    """
    try:
        return dict(_saved(folder)["times"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def forget_position(folder: Path) -> None:
    """Forget it, as the containers are gone."""
    with contextlib.suppress(OSError):
        (own_folder(folder) / POSITION_FILE).unlink(missing_ok=True)


def go_back_to_position(folder: Path, container_ids: Iterable[str]) -> dict[str, str]:
    """Cut the log to where its position was saved last. -> container id -> time of its last line there

    Empty if nothing was saved for these containers: then all of their log is to be copied.
    """
    try:
        saved = _saved(folder)
        times = {one: str(saved["times"][one]) for one in container_ids}
        with os.fdopen(open_regular(own_folder(folder) / LOG_FILE, os.O_RDWR), "rb+") as file:
            if os.fstat(file.fileno()).st_size >= saved["bytes"]:
                os.ftruncate(file.fileno(), saved["bytes"])
        return times
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _saved(folder: Path) -> dict:
    return json.loads(read_regular(own_folder(folder) / POSITION_FILE, LARGEST_POSITION_BYTES))
