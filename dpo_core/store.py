"""Atomic files, content hashes, locks: how every artifact of Pairline reaches the disk.

An artifact is written aside, flushed to the disk, renamed into place, and its manifest comes last. A reader verifies
what it reads. So a file is complete or it does not exist, whenever the process is killed.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dpo_core.errors import StoreBusy, StoreError, from_os_error

HASH_CHUNK_BYTES = 1 << 22
ASIDE = ".aside"  # ends the names of files and folders that are still being written


def canonical_json(value: Any) -> str:
    """JSON with one spelling per value: sorted keys, no spaces, models dumped; the input of every fingerprint."""

    def plain(item: Any) -> Any:
        if isinstance(item, BaseModel):
            return item.model_dump(mode="json")
        if isinstance(item, Path):
            return str(item)
        raise TypeError(f"{type(item).__name__} has no canonical JSON")

    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=plain)


def fingerprint(value: Any) -> str:
    """SHA-256 (hex, 64 characters) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def hash_files(folder: Path) -> dict[str, str]:
    """Relative POSIX path -> SHA-256 of every file below ``folder``, in sorted order. Dot files do not count."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    names = {p: p.relative_to(folder) for p in files}
    return {n.as_posix(): sha256_file(p) for p, n in names.items() if not any(part.startswith(".") for part in n.parts)}


def verify_files(folder: Path, expected: dict[str, str]) -> None:
    """Raise ``StoreError`` naming the first file of ``expected`` that is missing or has another content."""
    for name, sha256 in expected.items():
        path = folder / name
        if not path.is_file():
            raise StoreError(f"{path} is missing. Delete {folder} to have it made again.")
        if (got := sha256_file(path)) != sha256:
            raise StoreError(f"{path} is damaged: sha256 {got[:12]}, expected {sha256[:12]}. Delete {folder} to have "
                             "it made again.")


def flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: aside, fsync, rename. Raises ``DiskFull`` or ``StoreError``."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=ASIDE)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(aside, 0o644)
            os.replace(aside, path)
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise
        flush_to_disk(path.parent)
    except OSError as error:
        raise from_os_error(error, f"writing {path.name}") from error


def write_json(path: Path, value: BaseModel | dict | list) -> None:
    """Write a model or plain value as indented JSON, atomically."""
    text = value.model_dump_json(indent=2) if isinstance(value, BaseModel) else json.dumps(value, indent=2)
    write_bytes(path, (text + "\n").encode())


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``; on success it is flushed and renamed to ``path``, replacing an old one.

    Raises ``DiskFull`` or ``StoreError`` for failures of the file system, and leaves nothing behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=ASIDE))
    except OSError as error:
        raise from_os_error(error, f"writing {path.name}") from error
    try:
        aside.chmod(0o755)
        yield aside
        for file in aside.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)  # safetensors' are 0600: a step may run as another user
            flush_to_disk(file)
        flush_to_disk(aside)
        if path.exists():
            shutil.rmtree(path)
        os.replace(aside, path)
        flush_to_disk(path.parent)
    except OSError as error:
        raise from_os_error(error, f"writing {path.name}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Delete what a kill in the middle of a write left below ``folder``. For its only writer."""
    for aside in list(folder.rglob(f".*{ASIDE}")):
        shutil.rmtree(aside) if aside.is_dir() else aside.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive(folder: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold ``folder`` for this process. The kernel lets go when the process dies, so a lock is never stale.

    Raises ``StoreBusy``, naming the holder, when another live process has held it for ``wait_seconds``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
    except OSError as error:
        raise from_os_error(error, f"locking {folder}") from error
    with file:
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    file.seek(0)
                    holder = file.read().strip() or "another process"
                    raise StoreBusy(f"{folder} is in use by {holder}: another run with the same settings is at work on "
                                    "this step. Wait for it and start again (its result will be reused), or give this "
                                    "run another `store.root`.") from None
                time.sleep(0.2)
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        yield
