"""The orchestrator's own files of a job: its claim, the log, and how far that was copied.

They lie beside the job's folder, in ``<store>/<step>/.orchestrator/<id>/``, not in it. A step may write its own folder,
which is mounted into its container, so what is there is a step's word; this one is never mounted. For people there is a link
``log.txt`` in the job's folder. No code follows it.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from dpo_core.contract.errors import StoreBusy, StoreError, from_os_error
from dpo_core.contract.job import LOG_FILE
from dpo_core.contract.regular_file import NO_TRAP, open_regular
from dpo_core.contract.store import ASIDE, LOCK_FILE, exclusive, wait_for_lock
from tasks.launch.holder import as_holder

OWN = ".orchestrator"
EARLIER_CLAIM = ".claim"  # where the claim was up to version 0.1: in the job's folder
EARLIER_LOG, FULL_LOG, POSITION_FILE = "log.earlier.txt", "log.1.txt", "log-position.json"


def own_folder(folder: Path) -> Path:
    """Return where the orchestrator's files of the job in ``folder`` are, or would be."""
    return folder.parent / OWN / folder.name


def make_own_folder(folder: Path) -> Path:
    """Return the same, made if it is not there. Raises ``StoreError`` if a link is in its place, or ``DiskFull``."""
    own = own_folder(folder)
    try:
        own.mkdir(parents=True, exist_ok=True)
        if own.is_symlink() or own.parent.is_symlink():
            raise StoreError(
                f"{own} is a link, where the run's own files belong. Remove it, then start again."
            )
    except OSError as error:
        raise from_os_error(error, f"making {own}") from error
    return own


@contextlib.contextmanager
def claim(
    folder: Path, wait_seconds: float = 0.0, shared: bool = False, is_of_several: bool = False
) -> Iterator[None]:
    """Be the one that runs the job of ``folder``, or (``shared``) one of those that see to it that nobody does. The kernel
    drops the claim when its holder dies. ``is_of_several``: machines, whose locks may not reach each other (``holder``).

    A run of an earlier version that is still alive is respected, too. Raises ``StoreBusy`` after ``wait_seconds``.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(
                _shared(folder) if shared else exclusive(make_own_folder(folder), wait_seconds)
            )
            if (lock := earlier_lock(folder)) is not None:
                wait_for_lock(stack.enter_context(lock), folder, wait_seconds, shared)
            if is_of_several:
                stack.enter_context(as_holder(own_folder(folder)))
        except StoreBusy as busy:
            raise StoreBusy(str(busy).replace(str(own_folder(folder)), str(folder))) from None
        yield


@contextlib.contextmanager
def _shared(folder: Path) -> Iterator[None]:
    handle = open_regular(make_own_folder(folder) / LOCK_FILE, os.O_RDWR | os.O_CREAT)
    with os.fdopen(handle, "r+", errors="replace") as file:
        wait_for_lock(file, folder, wait_seconds=0, shared=True)
        yield


def earlier_lock(folder: Path) -> TextIO | None:
    """Return the lock of an earlier version if there is one. A step at work could put a link in its place at any
    moment.
    """
    with contextlib.suppress(OSError, StoreError):
        place = os.open(folder / EARLIER_CLAIM, os.O_RDONLY | os.O_DIRECTORY | NO_TRAP)
        try:
            handle = os.open(LOCK_FILE, os.O_RDWR | NO_TRAP, dir_fd=place)
        finally:
            os.close(place)
        return os.fdopen(handle, "r+", errors="replace")
    return None


def forget_what_was(folder: Path) -> None:
    """Begin the log anew where somebody deleted the job's folder; for who holds the claim."""
    if not folder.exists():
        for name in (LOG_FILE, FULL_LOG, POSITION_FILE):
            with contextlib.suppress(OSError):
                (own_folder(folder) / name).unlink(missing_ok=True)


def show_log(folder: Path) -> None:
    """Link the log from the job's folder, for people. What was there under the name gets another one."""
    place, target = folder / LOG_FILE, os.path.relpath(own_folder(folder) / LOG_FILE, folder)
    with contextlib.suppress(OSError):  # a file system without links
        if place.is_symlink() and os.readlink(place) == target:
            return
        if os.path.lexists(place) and not place.is_symlink():
            place.rename(folder / EARLIER_LOG)
        aside = folder / f".{LOG_FILE}{ASIDE}"
        aside.unlink(missing_ok=True)
        aside.symlink_to(target)
        os.replace(aside, place)
