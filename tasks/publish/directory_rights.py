"""Whether a checkpoint can be published in the directory that a recipe names, tried before anything is trained.

A checkpoint that is there may be the very one that the run ends with, which is left as it is: its card must say of itself
what the run's card will say.

It is tried as it is done later: something is written beside the place, and taken away again. What is there is left alone.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from dpo_core.contract.errors import ConfigError, DiskFull
from dpo_core.contract.store import ASIDE
from tasks.publish.model_card import CardInputs, known_before_training

PUBLISHED = ("config.json", "README.md")  # which every published checkpoint has
PROBE_BYTES = 1 << 20  # a few bytes find room in the file's entry on a disk that is full


def is_occupied(directory: Path) -> bool:
    """Return whether something is in the directory."""
    place = directory.expanduser()
    return place.is_dir() and any(place.iterdir())


def check_directory(directory: Path, cards: Sequence[CardInputs] = ()) -> None:
    """Raise ``ConfigError`` with what to do where nothing could be published in it, ``DiskFull``.

    ``cards``: what is known of those that may come to stand there, one of which must be what a checkpoint's that is there
    says.
    """
    target = directory.expanduser().absolute()
    try:
        if is_occupied(target):
            _check_occupied(target, cards)
            return
    except OSError as error:
        raise _refusal(target, f"cannot be looked into ({error.strerror})") from error
    if target.is_symlink():
        raise _refusal(target, f"is a link to {target.readlink()}, which is not replaced")
    if os.path.lexists(target) and not target.is_dir():
        raise _refusal(target, "is no directory")
    if target.is_dir() and os.path.ismount(target):
        raise _refusal(
            target, "is where a disk is mounted, and is not replaced", f"Name {target}/checkpoint."
        )
    _try_to_write(target)


def _check_occupied(target: Path, cards: Sequence[CardInputs]) -> None:
    if missing := [name for name in PUBLISHED if not (target / name).is_file()]:
        raise _refusal(
            target,
            f"holds something other than a published checkpoint (no {' and no '.join(missing)}), which is never changed",
            "Name another directory, or delete this one.",
        )
    text = (target / "README.md").read_text(encoding="utf-8", errors="replace")
    lacking = [[said for said in known_before_training(card) if said not in text] for card in cards]
    if lacking and all(lacking):
        raise _refusal(
            target,
            f"holds the checkpoint of another run, which is never changed (its README.md lacks `{lacking[0][0]}` of this "
            "one)",
            "Name another directory, or delete this one.",
        )


def _try_to_write(target: Path) -> None:
    """Make the directory and a file in it, in a folder that is deleted again: parents that are missing stay so."""
    above = next(place for place in target.parents if os.path.lexists(place))
    if not above.is_dir():
        raise _refusal(target, f"cannot be made: {above} is no directory")
    aside = above / f".{target.name}.{secrets.token_hex(8)}{ASIDE}"
    try:
        probe = aside / target.relative_to(above)
        probe.mkdir(parents=True)
        with (probe / "probe").open("wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"No space left in {above}, where upload.directory {target} is to be. Free some, or name another directory."
            ) from error
        raise _refusal(
            target,
            f"cannot be written in {above} ({error.strerror or error})",
            "Make it writable for the user that runs the flow, or name another directory.",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _refusal(target: Path, problem: str, advice: str = "Name another directory.") -> ConfigError:
    return ConfigError(
        f"upload.directory {target} {problem}, so the result could not be published there. {advice}"
    )
