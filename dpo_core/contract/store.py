"""Atomic files, content hashes, locks: how every artifact of Pairline reaches the disk.

An artifact is written aside, flushed to the disk, renamed into place, and its manifest comes last. A reader verifies
what it reads. So a file is complete or it does not exist, whenever the process is killed.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TextIO

from pydantic import BaseModel

from dpo_core.contract.errors import StoreBusy, StoreError, from_os_error
from dpo_core.contract.regular_file import open_regular, opened

HASH_CHUNK_BYTES = 1 << 22
HASHED_AT_ONCE = 4  # files: one core hashes about 1 GB a second, which disks of servers exceed
LOCK_FILE, LONGEST_HOLDER = ".lock", 200
NO_LOCKS = (
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.ENOLCK,
)  # Lustre without -o flock, NFS without a lock daemon
ASIDE = ".aside"  # ends the names of files and folders that are still being written


def canonical_json(value: Any) -> str:
    """Return JSON with one spelling per value: sorted keys, no spaces, models dumped; the input of every fingerprint."""

    def plain(item: Any) -> Any:
        if isinstance(item, BaseModel):
            return item.model_dump(mode="json")
        if isinstance(item, Path):
            return str(item)
        raise TypeError(f"{type(item).__name__} has no canonical JSON")

    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=plain)


def fingerprint(value: Any) -> str:
    """Return SHA-256 (hex, 64 characters) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Return SHA-256 (hex) of a regular file's bytes."""
    with opened(path) as file:
        return sha256_of(file)


def sha256_of(file: BinaryIO) -> str:
    """Return SHA-256 (hex) of what is left to read of an open file."""
    digest = hashlib.sha256()
    while chunk := file.read(HASH_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def hash_files(folder: Path) -> dict[str, str]:
    """Return relative POSIX path -> SHA-256 of every file below ``folder``, in sorted order. Dot files do not count."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    named = {p: p.relative_to(folder) for p in files}
    counted = {n.as_posix(): p for p, n in named.items() if not any(part.startswith(".") for part in n.parts)}
    return dict(zip(counted, _hashes(list(counted.values())), strict=True))


def verify_files(folder: Path, expected: dict[str, str]) -> None:
    """Raise ``StoreError`` naming the first file of ``expected`` that by its name would lie outside of ``folder`` or is
    missing, else the first that has another content; the ``OSError`` of one that cannot be read."""
    if damage := find_damage(folder, expected):
        raise damage[1]


def find_damage(folder: Path, expected: dict[str, str]) -> tuple[str, StoreError | OSError] | None:
    """Return which file of ``expected`` ``verify_files`` raises for, and what; nothing if all match."""
    advice = f"Delete {folder} to have it made again."
    for name in expected:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            return name, StoreError(f"A file named {name!r} would lie outside of {folder}.", advice)
        if not (folder / name).is_file():
            return name, StoreError(f"{folder / name} is missing.", advice)
    hashes = _hashes([folder / name for name in expected])
    for name, sha256 in expected.items():
        try:
            got = next(hashes)
        except OSError as error:
            return name, error
        if got != sha256:
            return name, StoreError(
                f"{folder / name} is damaged: sha256 {got[:12]}, expected {sha256[:12]}.", advice
            )
    return None


def _hashes(files: list[Path]) -> Iterator[str]:
    with ThreadPoolExecutor(HASHED_AT_ONCE) as threads:
        yield from threads.map(sha256_file, files)


def flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _aside(path: Path) -> Path:
    """A name beside ``path`` that nobody has yet and nobody can guess."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{ASIDE}")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: aside, fsync, rename. Its mode is what the umask leaves, as of any file that a program
    makes. Raises ``DiskFull`` or ``StoreError``."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = _aside(path)
        try:
            with os.fdopen(open_regular(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        flush_to_disk(path.parent)
    except OSError as error:
        raise from_os_error(error, f"writing {path.name}") from error


def write_json(path: Path, value: BaseModel | dict | list) -> None:
    """Write a model or plain value as indented JSON, atomically."""
    text = value.model_dump_json(indent=2) if isinstance(value, BaseModel) else json.dumps(value, indent=2)
    write_bytes(path, (text + "\n").encode())


def make_aside(path: Path) -> Path:
    """Make an empty folder beside ``path``, for ``put_in_place``. Raises ``DiskFull`` or ``StoreError``."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = _aside(path)
        aside.mkdir()
    except OSError as error:
        raise from_os_error(error, f"writing {path.name}") from error
    return aside


def put_in_place(aside: Path, path: Path) -> None:
    """Turn a folder, flushed, into ``path``, replacing an old one. Modes are what the umask leaves. A link in the place
    of ``path`` is an error, and what it leads to is left alone. Raises ``StoreError`` and ``OSError``."""
    give_usual_modes(aside)
    for file in aside.rglob("*"):
        flush_to_disk(file)
    flush_to_disk(aside)
    if path.is_symlink():
        raise StoreError(
            f"{path} is a link, which is not replaced. Remove it, or name the folder that it leads to."
        )
    if path.exists():
        shutil.rmtree(path)
    os.replace(aside, path)
    flush_to_disk(path.parent)


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``; on success it is flushed and renamed to ``path``, replacing an old one.

    As ``put_in_place`` says. Raises ``DiskFull`` or ``StoreError`` for failures of the file system, and leaves nothing
    behind.
    """
    aside = make_aside(path)
    try:
        yield aside
        put_in_place(aside, path)
    except OSError as error:
        raise from_os_error(error, f"writing {path.name}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def give_usual_modes(folder: Path) -> None:
    """Give what is below a folder that this process made the mode that the umask leaves, which the folder's own shows.

    A library may write private files whatever the umask says (safetensors: 0600), which a step that runs as another user
    could not read. Links are left alone, and so are files that have another name, as theirs is somebody's, too.
    """
    mode = stat.S_IMODE(folder.stat().st_mode)
    for path in folder.rglob("*"):
        about = path.lstat()
        if stat.S_ISDIR(about.st_mode):
            path.chmod(mode)
        elif stat.S_ISREG(about.st_mode) and about.st_nlink == 1:
            path.chmod(mode & 0o666)


def remove_unfinished(folder: Path) -> None:
    """Delete what a kill in the middle of a write left below ``folder``; of links, the link. For its only writer."""
    for aside in list(folder.rglob(f".*{ASIDE}")):
        is_folder = aside.is_dir() and not aside.is_symlink()
        shutil.rmtree(aside) if is_folder else aside.unlink(missing_ok=True)


def wait_for_lock(file: TextIO, folder: Path, wait_seconds: float, shared: bool = False) -> None:
    """Lock an open file until it is closed. Raises ``StoreBusy`` with what stands in it and what it locks, ``StoreError``
    where nothing can be locked."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            return fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                file.seek(0)
                holder = file.read(LONGEST_HOLDER).strip() or "another process"
                raise StoreBusy(
                    f"{folder} is in use by {holder}: another run with the same settings is at work on "
                    "this step. Wait for it and start again (its result will be reused), or give this "
                    "run another `store.root`."
                ) from None
            time.sleep(0.2)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise StoreError(
                f"The file system of {folder} keeps no locks ({error.strerror}), and without them two runs could write "
                "to it at once.",
                "Mount it with them (Lustre: -o flock; NFS: not nolock), or give the run another `store.root`.",
            ) from error


@contextlib.contextmanager
def exclusive(folder: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold ``folder`` for this process. The kernel lets go when the process dies, so a lock is never stale.

    Raises ``StoreBusy``, naming the holder, when another live process has held it for ``wait_seconds``; ``StoreError`` if
    its lock is a trap (see ``regular_file``), which nothing is written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(open_regular(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT), "r+", errors="replace")
    except OSError as error:
        raise from_os_error(error, f"locking {folder}") from error
    with file:
        wait_for_lock(file, folder, wait_seconds)
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        yield
