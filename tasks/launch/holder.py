"""Who holds a claim, for machines of one file system whose locks do not reach each other.

``flock`` is a promise of one kernel. NFS and Lustre pass it on to other machines, unless they are mounted with
``local_lock=flock``, ``nolock`` or ``localflock``: then two login nodes hold one lock at once, and neither hears of it. So
who holds a claim also writes down which machine it is on, and touches that file every ten seconds. What another machine has
touched lately is held, whatever the lock says. On one machine the lock counts alone: the kernel drops it at once.

Clocks may differ by as much as munge lets them.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from dpo_core.contract.errors import StoreBusy, StoreError, from_os_error
from dpo_core.contract.regular_file import open_regular

HOLDER_FILE = "holder.json"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # of a kernel, whichever container asks
LARGEST_BYTES = 4096
SECONDS_BETWEEN_SIGNS = 10.0
SECONDS_WITHOUT_A_SIGN, SECONDS_AHEAD = 60.0, 300.0


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a claim. ``machine``: the kernel whose locks it shares."""

    machine: str
    host: str
    pid: int


@cache
def this_machine() -> str:
    """Return a name of the kernel that keeps this process's locks."""
    with contextlib.suppress(OSError):
        return BOOT_ID.read_text().strip()
    return socket.gethostname()


@contextlib.contextmanager
def as_holder(own: Path) -> Iterator[None]:
    """Be the holder that stands in the folder, for who has its lock. Raises ``StoreBusy`` if another machine's is alive.

    Two that find a dead one's file within the same moment may both go on; so may none that find no file.
    """
    file, mine = own / HOLDER_FILE, Holder(this_machine(), socket.gethostname(), os.getpid())
    try:
        _take(file, mine)
    except OSError as error:
        raise from_os_error(error, f"writing {file}") from error
    is_over = threading.Event()
    threading.Thread(target=_touch_until, args=(file, is_over), daemon=True).start()
    try:
        yield
    finally:
        is_over.set()
        with contextlib.suppress(OSError, StoreError):
            if _read(file)[0] == mine:
                file.unlink()


def _take(file: Path, mine: Holder) -> None:
    with contextlib.suppress(FileNotFoundError):
        holder, age = _read(file)
        is_elsewhere = holder is None or holder.machine != mine.machine
        if is_elsewhere and -SECONDS_AHEAD < age < SECONDS_WITHOUT_A_SIGN:
            raise _busy(file.parent, holder)
        file.unlink()
    try:
        handle = open_regular(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        raise _busy(file.parent, None) from None
    try:
        with os.fdopen(handle, "w") as written:
            json.dump(asdict(mine), written)
    except OSError:  # an empty one would be somebody's
        file.unlink(missing_ok=True)
        raise


def _read(file: Path) -> tuple[Holder | None, float]:
    """Who stands in the file, None where that cannot be read, and for how many seconds it has not been touched. A file that
    is opened is asked about anew where attributes are cached, as by NFS."""
    with os.fdopen(open_regular(file), "rb") as opened:
        age = time.time() - os.fstat(opened.fileno()).st_mtime
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            return Holder(**json.loads(opened.read(LARGEST_BYTES))), age
    return None, age


def _busy(own: Path, holder: Holder | None) -> StoreBusy:
    who = f"process {holder.pid} on {holder.host}" if holder else "another machine"
    return StoreBusy(
        f"{own} is in use by {who}, whose lock is not seen here: another run with the same settings is at work on "
        "this step. Wait for it and start again (its result will be reused), or give this run another `store.root`."
    )


def _touch_until(file: Path, is_over: threading.Event) -> None:
    while not is_over.wait(SECONDS_BETWEEN_SIGNS):
        with contextlib.suppress(OSError):
            os.utime(file)
