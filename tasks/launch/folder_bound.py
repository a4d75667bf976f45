"""What a step may write: never the last of its disk, and no more than compute.folder_gib where that is set.

The disk is asked, not the files added up, as a file that was unlinked while it is open, or lies deeper than a path can say,
is in no listing. That makes nobody the one who filled it: who else writes there has the step stopped as well, as its next
file would have been refused anyway.
"""

import contextlib
import itertools
import os
import stat
import time
from pathlib import Path

from dpo_core.contract.errors import DiskFull

SPARE_BYTES, SPARE_FILES = 1 << 30, 10_000
SPARE_SHARE = 0.1  # of what was free when the step began, where that is less
SECONDS_BETWEEN_LISTINGS = 5.0
MAX_FILES_LISTED = 200_000
GIB = 1 << 30
BYTES_PER_BLOCK = 512  # of st_blocks, whatever the file system's are


class FolderBound:
    """Watches one start of a step, whose folder is ``folder``."""

    def __init__(self, folder: Path, max_gib: float | None) -> None:
        self.folder, self.max_gib = folder, max_gib
        free_bytes, free_files = _free(folder)
        self.spare_bytes = min(SPARE_BYTES, free_bytes * SPARE_SHARE)
        self.spare_files = min(SPARE_FILES, free_files * SPARE_SHARE)
        self._listed = 0.0

    def check(self) -> None:
        """Check the bound while the step runs; it takes microseconds, and a listing of the folder now and then if that
        is bounded. Raises ``DiskFull``: then the step has to be killed, as it could write on while it is asked to stop.
        """
        free_bytes, free_files = _free(self.folder)
        if free_bytes < self.spare_bytes or free_files < self.spare_files:
            raise DiskFull(
                f"The step was stopped, as the disk of {self.folder} is nearly full: {free_bytes / GIB:.2f} GiB "
                f"and {free_files:,.0f} files are left. Find out what took them, free some space, and start "
                "again, or move `store.root`."
            )
        if self.max_gib is not None and time.monotonic() - self._listed > SECONDS_BETWEEN_LISTINGS:
            taken, num_files = _taken(self.folder)
            self._listed = time.monotonic()
            if taken > self.max_gib * GIB or num_files > MAX_FILES_LISTED:
                raise DiskFull(
                    f"The step was stopped, as {self.folder} holds {taken / GIB:.2f} GiB in {num_files:,} files, "
                    f"expected at most {self.max_gib:g} GiB (compute.folder_gib) in {MAX_FILES_LISTED:,}. Raise "
                    "it if that is meant; else look at what it wrote, and delete the folder."
                )


def _free(folder: Path) -> tuple[int, float]:
    """Bytes and files that an ordinary user can still write; files without end where the file system counts none."""
    try:
        about = os.statvfs(folder)
    except OSError:  # the step has made its folder unreadable or removed it; its result will be missing
        return 1 << 62, float("inf")
    return about.f_bavail * about.f_frsize, about.f_favail if about.f_files else float("inf")


def _taken(folder: Path) -> tuple[int, int]:
    """Bytes and files below ``folder``. What is removed meanwhile, as a step at work does, counts nothing."""
    taken = num_files = 0
    waiting = [folder]
    while waiting and num_files <= MAX_FILES_LISTED:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in itertools.islice(entries, MAX_FILES_LISTED + 1):
                    with contextlib.suppress(FileNotFoundError):
                        about = entry.stat(follow_symlinks=False)
                        taken, num_files = taken + about.st_blocks * BYTES_PER_BLOCK, num_files + 1
                        if stat.S_ISDIR(about.st_mode):
                            waiting.append(Path(entry.path))
        except FileNotFoundError:
            pass
        except (
            OSError
        ):  # deeper than a path can say, or a folder that was made unreadable: it cannot be counted
            return taken, MAX_FILES_LISTED + 1
    return taken, num_files
